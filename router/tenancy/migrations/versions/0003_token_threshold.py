"""The token threshold of what shadow runs found"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("token_threshold", sa.Float))


def downgrade() -> None:
    op.drop_column("comparisons", "token_threshold")
