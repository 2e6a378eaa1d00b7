"""Tenants, keys and the ledger"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)
TOKENS = (
    "small_prompt_tokens",
    "small_cached_tokens",
    "small_completion_tokens",
    "large_prompt_tokens",
    "large_cached_tokens",
    "large_completion_tokens",
    "discarded_tokens",
)


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(63), primary_key=True),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("tenant", sa.String(63), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
    )
    op.create_index("ix_keys_tenant", "keys", ["tenant"])
    op.create_table(
        "requests",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("key", sa.String(12), nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("pair", sa.String(64), nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in TOKENS),
        sa.Column("large_share", sa.Float, nullable=False),
        sa.Column("cost_nano", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("received_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT, nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("trace", sa.String(32)),
    )
    op.create_index("requests_by_tenant_and_day", "requests", ["tenant", "day"])


def downgrade() -> None:
    op.drop_table("requests")
    op.drop_table("keys")
    op.drop_table("tenants")
