"""The error classes of what the service answers with, and of what came of an upload."""

import httpx

from wbar.errors import REFUSED, REJECTED, Refused, Rejected, Unreachable


def refusal(response: httpx.Response) -> Refused:
    """Return the error that the code of a problem response names, with its detail. The response was read."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or f"HTTP {response.status_code} from {response.url}"
    kind = REFUSED.get(problem.get("code", ""), Refused)
    errors = problem.get("errors")
    return kind(detail, errors if isinstance(errors, list) else None)


def rejection(code: str, message: str) -> Rejected:
    """Return the error that says why the content of an upload was rejected."""
    return REJECTED.get(code, Rejected)(message)


def unreachable(url: str, error: Exception) -> Unreachable:
    """Return the error that no service answers at the address."""
    return Unreachable(f"no answer from {url} ({error}): is `wbar up` running, or WBAR_URL set?")
