"""Is the process there, and is everything it needs: for load balancers, orchestrators and `wbar up` itself."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from sqlalchemy import text

from wbar import __version__
from wbar_service.auth import StoreOf

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok", "version": __version__}


@router.get("/readyz", response_model=None)
def readyz(store: StoreOf) -> JSONResponse:
    """Database, broker, blob store, and at least one live worker for each queue; 503 with the reasons otherwise."""

    def database() -> None:
        with store.database.read() as connection:
            connection.execute(text("SELECT 1"))

    checks: dict[str, Any] = {}
    checks["database"] = _reason(database)
    checks["broker"] = _reason(store.notifier.check)
    checks["blobs"] = _reason(store.blobs.check)
    live = store.live_workers() if checks["database"] == "ok" else []
    counts = {queue: sum(1 for _, found, _ in live if found == queue) for queue in ("train", "ingest")}
    checks["workers"] = (
        "ok" if all(counts.values()) else f"no live worker for: {', '.join(q for q in counts if not counts[q])}"
    )
    ready = all(value == "ok" for value in checks.values())
    body = {"status": "ready" if ready else "not_ready", "checks": checks, "workers": counts}
    return JSONResponse(body, 200 if ready else 503)


def _reason(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        # Whatever a driver raises, the answer is that this part is not there.
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return "ok"
