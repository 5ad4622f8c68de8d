"""Uploads that arrive in parts (tus)

Revision: 0010, after 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "resumable_uploads",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("length", sa.BigInteger()),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("parts", sa.Integer(), nullable=False),
        sa.Column("given", sa.Text(), nullable=False),
        sa.Column("partials", sa.Text()),
        sa.Column("sha256", sa.String(64)),
        sa.Column("used_at", sa.Double()),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_resumable_uploads")),
    )
    op.create_index(op.f("ix_resumable_uploads_tenant_id"), "resumable_uploads", ["tenant", "id"])
    op.create_index(op.f("ix_resumable_uploads_expires_at"), "resumable_uploads", ["expires_at"])
    op.create_table(
        "upload_parts",
        sa.Column("upload", sa.String(40), nullable=False),
        sa.Column("begin", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(
            ["upload"],
            ["resumable_uploads.id"],
            name=op.f("fk_upload_parts_upload"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("upload", "begin", name=op.f("pk_upload_parts")),
        sa.UniqueConstraint("name", name=op.f("uq_upload_parts_name")),
    )


def downgrade() -> None:
    op.drop_table("upload_parts")
    op.drop_table("resumable_uploads")
