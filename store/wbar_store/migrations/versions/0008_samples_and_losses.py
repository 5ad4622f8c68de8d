"""Datasets have a sheet of samples, and jobs the losses of each held-out image

Revision: 0008, after 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, column in (("datasets", "samples"), ("jobs", "losses")):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column(column, sa.String(64)))
        op.create_index(f"ix_{table}_{column}", table, [column])


def downgrade() -> None:
    for table, column in (("datasets", "samples"), ("jobs", "losses")):
        op.drop_index(f"ix_{table}_{column}", table)
        with op.batch_alter_table(table) as batch:
            batch.drop_column(column)
