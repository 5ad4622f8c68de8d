"""A tenant's queued jobs are found in the order in which they are taken

Revision: 0018, after 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_jobs_order_of_the_queue", "jobs", ["tenant", "status", sa.text("priority DESC"), "id"])


def downgrade() -> None:
    op.drop_index("ix_jobs_order_of_the_queue", "jobs")
