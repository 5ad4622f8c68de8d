"""A merge of LoRA adapters says what its rank left out

Revision: 0019, after 0018
"""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("merges", sa.Column("residuals", sa.JSON()))


def downgrade() -> None:
    op.drop_column("merges", "residuals")
