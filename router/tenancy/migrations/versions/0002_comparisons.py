"""What shadow runs found"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(63), nullable=False),
        sa.Column("pair", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("threshold", sa.Float, nullable=False),
        sa.Column("agree", sa.Boolean, nullable=False),
        sa.Column("routed_s", sa.Float, nullable=False),
        sa.Column("large_s", sa.Float, nullable=False),
        sa.Column("routed_large_tokens", sa.BigInteger, nullable=False),
        sa.Column("large_tokens", sa.BigInteger, nullable=False),
        sa.Column("routed_cost_nano", sa.BigInteger, nullable=False),
        sa.Column("large_cost_nano", sa.BigInteger, nullable=False),
    )
    op.create_index("comparisons_by_tenant", "comparisons", ["tenant", "at"])


def downgrade() -> None:
    op.drop_table("comparisons")
