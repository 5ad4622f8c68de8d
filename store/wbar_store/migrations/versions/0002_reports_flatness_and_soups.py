"""reports, flatness and soups

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


# recreate="never": SQLite would drop and rebuild `jobs`, and the drop would take events, metrics and snapshots along.


def upgrade() -> None:
    op.create_table(
        "job_checkpoints",
        sa.Column("job", sa.String(length=40), nullable=False),
        sa.Column("checkpoint", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name=op.f("fk_job_checkpoints_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job", "checkpoint", name=op.f("pk_job_checkpoints")),
    )
    with op.batch_alter_table("job_checkpoints", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_job_checkpoints_checkpoint"), ["checkpoint"], unique=False)

    with op.batch_alter_table("jobs", schema=None, recreate="never") as batch_op:
        batch_op.add_column(sa.Column("flatness", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("swag", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("report", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None, recreate="never") as batch_op:
        batch_op.drop_column("report")
        batch_op.drop_column("swag")
        batch_op.drop_column("flatness")

    with op.batch_alter_table("job_checkpoints", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_job_checkpoints_checkpoint"))

    op.drop_table("job_checkpoints")
