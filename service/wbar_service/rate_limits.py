"""Requests per minute and key: reads are counted in this process, changes in the broker's Valkey, for all processes together.

A read costs microseconds to count and milliseconds to answer, so a limit per process is enough for it; asking Valkey for each
would cost more than the answer. Where Valkey does not answer, changes are counted here too: a limit must not be the reason
that the service is away. The headers are those of the IETF's draft on rate limits.
"""

import logging
import math
import time
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError

from wbar.errors import TooManyRequests
from wbar_service.settings import ServiceSettings

log = logging.getLogger("wbar.service")

MINUTE = 60


@dataclass(frozen=True)
class Standing:
    """The place of a key in its window. remaining: requests that are left; reset: seconds until all are there again."""

    policy: str
    limit: int
    remaining: int
    reset: int

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an answer under a limit: of one that was not refused, and of a 429."""
        return {
            "RateLimit-Policy": f'"{self.policy}";q={self.limit};w={MINUTE}',
            "RateLimit": f'"{self.policy}";r={self.remaining};t={self.reset}',
        }


class RateLimits:
    """The limits of this service's settings; a request is counted with `count`. Only the event loop uses it."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._reads = _per_minute(settings.reads_per_minute)
        self._writes = _per_minute(settings.writes_per_minute)
        self._here = FixedWindowRateLimiter(MemoryStorage())
        self._shared = FixedWindowRateLimiter(_shared_storage(settings.broker_url))

    async def count(self, key_id: str, changes: bool) -> Standing | None:
        """Count a request of a key, and return where it stands; None where there is no limit.

        changes: whether it changes something. Raises TooManyRequests (429) with Retry-After.
        """
        item, policy = (self._writes, "changes") if changes else (self._reads, "reads")
        if item is None:
            return None
        limiter = self._shared if changes else self._here
        try:
            standing, allowed = await self._hit(limiter, item, policy, key_id)
        except (StorageError, OSError) as error:
            log.error(
                "the broker does not count requests (%s): this process does",
                type(getattr(error, "storage_error", error)).__name__,
            )
            standing, allowed = await self._hit(self._here, item, policy, key_id)
        if not allowed:
            raise TooManyRequests(
                f"this API key has sent {standing.limit} {policy} within a minute, which is its limit: come back in "
                f"{standing.reset} s",
                headers={**standing.headers, "Retry-After": str(standing.reset)},
            )
        return standing

    @staticmethod
    async def _hit(
        limiter: FixedWindowRateLimiter, item: RateLimitItem, policy: str, key_id: str
    ) -> tuple[Standing, bool]:
        allowed = await limiter.hit(item, policy, key_id)
        window = await limiter.get_window_stats(item, policy, key_id)
        reset = max(1, math.ceil(window.reset_time - time.time()))
        return Standing(policy, item.amount, window.remaining, reset), allowed


def _per_minute(requests: int | None) -> RateLimitItem | None:
    return None if requests is None else RateLimitItemPerMinute(requests)


def _shared_storage(broker_url: str) -> Storage:
    if not broker_url.startswith("redis"):
        return MemoryStorage()
    url = f"async+{broker_url.replace('redis+socket:', 'redis+unix:', 1)}"
    return RedisStorage(url, implementation="redispy", socket_timeout=1, socket_connect_timeout=1, wrap_exceptions=True)
