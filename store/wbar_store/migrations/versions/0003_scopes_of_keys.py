"""API keys have scopes, an expiry and a last use; an idempotency key is written with its object, so none is ever at work

Revision: 0003, after 0002
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_IDEMPOTENCY = sa.table(
    "idempotency",
    sa.column("tenant", sa.String),
    sa.column("key", sa.String),
    sa.column("object", sa.String),
    sa.column("body", sa.Text),
)


def upgrade() -> None:
    _upgrade_keys()
    _upgrade_idempotency()


def _upgrade_keys() -> None:
    # The defaults are for an API of the version before, which knows none of these.
    with op.batch_alter_table("api_keys") as batch:
        batch.add_column(
            sa.Column("scopes", sa.JSON(none_as_null=True), nullable=False, server_default='["read", "write", "admin"]')
        )
        batch.add_column(sa.Column("hint", sa.String(length=16), nullable=False, server_default="wbar_…"))
        batch.add_column(sa.Column("expires_at", sa.Double()))
        batch.add_column(sa.Column("last_used_at", sa.Double()))
        batch.create_index(batch.f("ix_api_keys_tenant_id"), ["tenant", "id"])


def _upgrade_idempotency() -> None:
    with op.batch_alter_table("idempotency") as batch:
        batch.add_column(sa.Column("object", sa.String(length=40), nullable=False, server_default=""))
    connection = op.get_bind()
    answered = sa.select(_IDEMPOTENCY.c.tenant, _IDEMPOTENCY.c.key, _IDEMPOTENCY.c.body)
    for row in connection.execute(answered.where(_IDEMPOTENCY.c.body.is_not(None))).all():
        this = (_IDEMPOTENCY.c.tenant == row.tenant) & (_IDEMPOTENCY.c.key == row.key)
        connection.execute(sa.update(_IDEMPOTENCY).where(this).values(object=json.loads(row.body)["id"]))


def downgrade() -> None:
    with op.batch_alter_table("idempotency") as batch:
        batch.drop_column("object")
    # The version before knows no scopes and no expiry: a key that must not do everything must not come back as one that may.
    limited = "DELETE FROM api_keys WHERE expires_at IS NOT NULL OR NOT (CAST(scopes AS TEXT) LIKE '%admin%')"
    op.get_bind().execute(sa.text(limited))
    with op.batch_alter_table("api_keys") as batch:
        batch.drop_index(batch.f("ix_api_keys_tenant_id"))
        for name in ("scopes", "hint", "expires_at", "last_used_at"):
            batch.drop_column(name)
