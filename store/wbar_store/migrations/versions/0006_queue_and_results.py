"""Jobs have a priority and name their worker; the numbers that lists sort by stand in columns of their own

Revision: 0006, after 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBERS = (
    "result_accuracy",
    "result_loss",
    "result_accuracy_gain",
    "result_loss_gain",
    "result_accuracy_gain_over_control",
    "result_loss_gain_over_control",
)


def upgrade() -> None:
    with op.batch_alter_table("jobs") as batch:
        batch.add_column(sa.Column("priority", sa.Integer(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("worker", sa.String(256)))
        batch.add_column(sa.Column("verdict", sa.String(16)))
        for name in NUMBERS:
            batch.add_column(sa.Column(name, sa.Double()))
    for name in (*NUMBERS, "finished_at"):
        op.create_index(f"ix_jobs_tenant_{name}_id", "jobs", ["tenant", name, "id"])
    op.create_index("ix_jobs_tenant_status", "jobs", ["tenant", "status"])
    _fill()


def _fill() -> None:
    """Write the columns of the jobs that have ended, from their results."""
    jobs = sa.table(
        "jobs", sa.column("id"), sa.column("result", sa.JSON()), sa.column("verdict"), *map(sa.column, NUMBERS)
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(jobs.c.id, jobs.c.result).where(jobs.c.result.is_not(None))).all():
        try:
            start, averaged = row.result["metrics"]["start"], row.result["metrics"]["averaged"]
            control = row.result["metrics"].get("control")
            values = {
                "result_accuracy": float(averaged["accuracy"]),
                "result_loss": float(averaged["loss"]),
                "result_accuracy_gain": averaged["accuracy"] - start["accuracy"],
                "result_loss_gain": start["loss"] - averaged["loss"],
                "verdict": str(row.result["verdict"])[:16],
            }
            if control is not None:
                values["result_accuracy_gain_over_control"] = averaged["accuracy"] - control["accuracy"]
                values["result_loss_gain_over_control"] = control["loss"] - averaged["loss"]
        except (KeyError, TypeError, ValueError):
            continue  # a row that cannot be read is listed after those that can
        connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**values))


def downgrade() -> None:
    op.drop_index("ix_jobs_tenant_status", "jobs")
    for name in (*NUMBERS, "finished_at"):
        op.drop_index(f"ix_jobs_tenant_{name}_id", "jobs")
    with op.batch_alter_table("jobs") as batch:
        for name in ("priority", "worker", "verdict", *NUMBERS):
            batch.drop_column(name)
