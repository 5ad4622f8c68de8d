"""Checkpoints, datasets and the files of jobs may have an end; a job keeps what was asked for

Revision: 0005, after 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("checkpoints", "datasets"):
        with op.batch_alter_table(table) as batch:
            batch.add_column(sa.Column("expires_at", sa.Double()))
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("expires_after", sa.Double()))
        batch.add_column(sa.Column("expired_at", sa.Double()))
        batch.add_column(sa.Column("request", sa.JSON(none_as_null=True)))


def downgrade() -> None:
    for table in ("checkpoints", "datasets"):
        with op.batch_alter_table(table) as batch:
            batch.drop_column("expires_at")
    with op.batch_alter_table("jobs") as batch:
        batch.drop_column("expires_after")
        batch.drop_column("expired_at")
        batch.drop_column("request")
