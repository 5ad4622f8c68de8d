"""Merges of checkpoints, and the blobs that those which have not ended read

Revision: 0013, after 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "merges",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(256)),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("spec", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("fraction", sa.Double(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("weights", sa.String(64)),
        sa.Column("error", sa.JSON(none_as_null=True)),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("notified_at", sa.Double()),
        sa.Column("lease_until", sa.Double()),
        sa.Column("expires_after", sa.Double()),
        sa.Column("expires_at", sa.Double()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("started_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_merges")),
    )
    op.create_index(op.f("ix_merges_tenant_id"), "merges", ["tenant", "id"])
    op.create_index(op.f("ix_merges_status"), "merges", ["status"])
    op.create_index(op.f("ix_merges_weights"), "merges", ["weights"])
    op.create_table(
        "merge_inputs",
        sa.Column("merge", sa.String(40), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["merge"], ["merges.id"], name=op.f("fk_merge_inputs_merge"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("merge", "sha256", name=op.f("pk_merge_inputs")),
    )
    op.create_index(op.f("ix_merge_inputs_sha256"), "merge_inputs", ["sha256"])


def downgrade() -> None:
    op.drop_table("merge_inputs")
    op.drop_table("merges")
