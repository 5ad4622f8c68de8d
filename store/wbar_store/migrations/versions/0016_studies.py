"""Studies, and which jobs are theirs

Revision: 0016, after 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "studies",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256)),
        sa.Column("request", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("checkpoint", sa.String(40), nullable=False),
        sa.Column("dataset", sa.String(40), nullable=False),
        sa.Column("at_once", sa.Integer(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
    )
    op.create_index(op.f("ix_studies_tenant_id"), "studies", ["tenant", "id"])
    op.create_index(op.f("ix_studies_paused"), "studies", ["paused"])
    op.create_table(
        "study_children",
        sa.Column("study", sa.String(40), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("job", sa.String(40), nullable=False),
        sa.Column("settings", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(["study"], ["studies.id"], name=op.f("fk_study_children_study"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study", "n", name=op.f("pk_study_children")),
    )
    op.create_index(op.f("ix_study_children_job"), "study_children", ["job"])


def downgrade() -> None:
    op.drop_table("study_children")
    op.drop_table("studies")
