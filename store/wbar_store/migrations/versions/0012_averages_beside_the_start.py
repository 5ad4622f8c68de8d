"""A job whose guard chose the start keeps the average, too

Revision: 0012, after 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

COLUMNS = ("averaged", "averaged_pytorch")


def upgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        for column in COLUMNS:
            batch.add_column(sa.Column(column, sa.String(64)))
    for column in COLUMNS:
        op.create_index(f"ix_jobs_{column}", "jobs", [column])


def downgrade() -> None:
    for column in COLUMNS:
        op.drop_index(f"ix_jobs_{column}", "jobs")
    with op.batch_alter_table("jobs") as batch:
        for column in COLUMNS:
            batch.drop_column(column)
