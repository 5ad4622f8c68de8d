"""When a request is sent again: a failure that passes, on a request that may be repeated, a few times, with jitter.

The pause before the kth further try is uniform in [½, 1] · min(longest, first · 2^(k-1)), on top of what `Retry-After` says.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from wbar.errors import QuotaExceeded, Refused

# The connection failed, or broke: the request may or may not have been carried out.
BROKEN = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
_BUSY = (429, 502, 503, 504)
_REPEATABLE = ("GET", "HEAD", "OPTIONS", "DELETE")


@dataclass(frozen=True)
class Retries:
    """How often a request is sent again, and how long the client waits before it.

    most: further tries after the first one; 0: none.
    first, longest: seconds of the first pause and of the longest one, which double from the one to the other.
    patience: the longest `Retry-After`, in seconds, that is waited for; after a longer one the refusal is raised at once.
    """

    most: int = 3
    first: float = 0.25
    longest: float = 8.0
    patience: float = 60.0

    def pause(self, tries: int, retry_after: float = 0.0) -> float | None:
        """Return the seconds to wait after so many tries that failed; None where the client gives up."""
        if tries > self.most or retry_after > self.patience:
            return None
        return retry_after + random.uniform(0.5, 1.0) * min(self.longest, self.first * 2.0 ** (tries - 1))


def repeatable(method: str, headers: httpx.Headers) -> bool:
    """Return whether a request may be sent again without doing twice what it asks for."""
    return method in _REPEATABLE or "Idempotency-Key" in headers


def passes(response: httpx.Response, problem: Refused) -> bool:
    """Return whether a refusal is one that time alone may change; a quota is not."""
    return response.status_code in _BUSY and not isinstance(problem, QuotaExceeded)


def retry_after(response: httpx.Response) -> float:
    """Return the seconds that `Retry-After` asks for, a number or a date (RFC 9110); 0 without one that can be read."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0
