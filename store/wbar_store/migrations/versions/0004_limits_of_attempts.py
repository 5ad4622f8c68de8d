"""Jobs count crashes apart from lost workers, remember how far they came and how long they ran, and may have a time limit

Revision: 0004, after 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # With defaults of the database's own: an API of the version before inserts jobs without them.
    with op.batch_alter_table("jobs") as batch:
        for name in ("crashes", "furthest_step", "memory_retries"):
            batch.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("ran_seconds", sa.Double(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("max_seconds", sa.Double()))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        for name in ("crashes", "furthest_step", "memory_retries", "ran_seconds", "max_seconds"):
            batch.drop_column(name)
