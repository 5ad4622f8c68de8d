"""Liveness and readiness, for load balancers, orchestrators and `wbar up` itself."""

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from wbar import __version__
from wbar_service.answers import answer
from wbar_service.auth import StoreOf

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """That the process answers, and its version."""

    status: Literal["ok"] = "ok"
    version: str


_HEALTHY = Health(version=__version__).model_dump()


class Readiness(BaseModel):
    """Whether the service can do what it is asked, and what it lacks where it cannot."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str] = Field(description="`ok`, or the reason why not, for each part that the service needs.")
    workers: dict[str, int] = Field(description="Live workers by queue.")


@router.get("/healthz", response_model=Health)
async def get_health() -> Response:
    """Return 200: the process answers."""
    return answer(_HEALTHY)


@router.get(
    "/readyz", responses={503: {"model": Readiness, "description": "Something is missing; `checks` says what."}}
)
def get_readiness(store: StoreOf, response: Response) -> Readiness:
    """Check database, broker, blob store and workers (one for each queue); 503 with the reasons where one is missing."""
    checks = {
        "database": _reason(store.check),
        "broker": _reason(store.notifier.check),
        "blobs": _reason(store.blobs.check),
    }
    live = store.workers.live() if checks["database"] == "ok" else []
    counts = {queue: sum(worker.queue == queue for worker in live) for queue in ("train", "ingest")}
    checks["workers"] = (
        "ok" if all(counts.values()) else f"no live worker for: {', '.join(q for q in counts if not counts[q])}"
    )
    ready = all(value == "ok" for value in checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(status="ready" if ready else "not_ready", checks=checks, workers=counts)


def _reason(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:
        # Whatever a driver raises, the answer is that this part is not there.
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return "ok"
