"""`auto` lost the fields `low`, `average: "window"` and the rates of its regimes; the jobs that have them stay readable

Revision: 0002, after 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JOBS = sa.table("jobs", sa.column("id", sa.String), sa.column("spec", sa.JSON))


def upgrade() -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(_JOBS.c.id, _JOBS.c.spec)).all():
        method = row.spec["method"]
        if "probe_rate" not in method and method["type"] in ("auto", "cyclic_swa"):
            renewed = _renewed(method) if method["type"] == "auto" else {**method, "probe_rate": False}
            spec = {**row.spec, "method": renewed}
            connection.execute(sa.update(_JOBS).where(_JOBS.c.id == row.id).values(spec=spec))


def _renewed(method: dict[str, Any]) -> dict[str, Any]:
    """Return the method under its present fields; a job that still waits is trained as they say."""
    kept = {name: value for name, value in method.items() if name not in ("hold", "low", "average")}
    memorised = {name: value for name, value in method["memorised"].items() if name in ("ratio", "pull")}
    return kept | {"memorised": memorised, "settled": {"ratio": method["settled"]["ratio"]}, "probe_rate": False}


def downgrade() -> None:
    """What the fields held is not kept."""
