"""The sender of webhooks: claims deliveries whose time has come, sends each, and records what came of it.

Safe to run in several processes: a claim is a compare-and-set. A message that was sent by a process that then was killed is
due again when its lease is over, under the same id: at least once. One receiver, or one tenant, takes a part of the slots at
most, so that those who do not answer keep no others waiting.
"""

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from wbar import __version__
from wbar.webhooks import signed_headers
from wbar_store.addresses import Reach
from wbar_store.deliveries import Due, Message
from wbar_store.store import Store
from wbar_worker.guarded_post import GuardedPost, NotSent
from wbar_worker.settings import WorkerSettings

log = logging.getLogger("wbar.webhooks")

POLL_SECONDS = 0.5
SLOTS, OF_A_TENANT, OF_A_WEBHOOK = 16, 8, 4  # messages on their way at a time
LONGEST_DELAY = 2 * 3600.0


def backoff(attempts: int, base: float, jitter: float) -> float:
    """Return the seconds until the next attempt: base · 2^(attempts - 1), at most two hours, of which jitter takes up to half.

    jitter: random, from 0 to 1: what failed together is not tried again together.
    """
    return min(base * 2.0 ** min(attempts - 1, 32), LONGEST_DELAY) * (1 - jitter / 2)


class WebhookSender:
    """Sends what is due until told to stop."""

    def __init__(self, store: Store, settings: WorkerSettings) -> None:
        self._store, self._settings = store, settings
        self._post = GuardedPost(Reach(settings.webhooks_allow), settings.webhook_seconds)
        # A message is recorded well before its lease is over, so that only a dead sender's is sent twice.
        self._lease = 2 * settings.webhook_seconds + 1
        self._lock = threading.Lock()
        self._on_their_way: dict[str, Due] = {}
        self._freed = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Look again and again until told to stop; then what is on its way is waited for, a few seconds."""
        with ThreadPoolExecutor(SLOTS, "webhook") as pool:
            while not stop.is_set():
                self._freed.clear()
                taken: list[Due] = []
                try:
                    taken = self._take()
                except Exception as error:
                    log.error("the sender could not look (%s: %s)", type(error).__name__, _first_line(error))
                for due in taken:
                    pool.submit(self._deliver, due)
                if not taken:  # otherwise others may wait behind those of a webhook that has all its slots now
                    self._freed.wait(POLL_SECONDS)

    def _take(self) -> list[Due]:
        """Return what is due and has a slot, and take the slots."""
        with self._lock:
            busy = list(self._on_their_way.values())
        room = SLOTS - len(busy)
        if room == 0:
            return []
        webhooks, tenants = Counter(one.webhook for one in busy), Counter(one.tenant for one in busy)
        full_webhooks = [name for name, n in webhooks.items() if n >= OF_A_WEBHOOK]
        full_tenants = [name for name, n in tenants.items() if n >= OF_A_TENANT]
        taken: list[Due] = []
        # Twice as many as there are slots: those on their way that are not claimed yet are among them.
        for due in self._store.deliveries.due(2 * SLOTS, full_webhooks, full_tenants):
            fits = webhooks[due.webhook] < OF_A_WEBHOOK and tenants[due.tenant] < OF_A_TENANT
            if len(taken) == room or not fits or due.id in {one.id for one in busy}:
                continue
            webhooks[due.webhook] += 1
            tenants[due.tenant] += 1
            taken.append(due)
        with self._lock:
            self._on_their_way |= {due.id: due for due in taken}
        return taken

    def _deliver(self, due: Due) -> None:
        try:
            message = self._store.deliveries.claim(due, self._lease)
            if message is not None:
                self._send(message)
        except Exception as error:  # whatever it is, the delivery is due again when its lease is over
            log.error("%s was not settled (%s: %s)", due.id, type(error).__name__, _first_line(error))
        finally:
            with self._lock:
                del self._on_their_way[due.id]
            self._freed.set()

    def _send(self, message: Message) -> None:
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"wbar/{__version__}",
            **signed_headers(message.secrets, message.id, int(time.time()), message.body),
        }
        delay = backoff(message.attempt, self._settings.webhook_backoff_seconds, random.random())
        status: int | None = None
        try:
            answer = self._post.send(message.url, headers, message.body)
            status = answer.status
            if 200 <= status < 300:
                self._store.deliveries.delivered(message, status)
                return
            error = "a redirect, which is not followed" if 300 <= status < 400 else f"answered with {status}"
            delay = max(delay, answer.retry_after)
        except NotSent as reason:
            error = str(reason)
        left = self._store.deliveries.missed(message, status, error, delay)
        log.info("%s to %s: attempt %d: %s, now %s", message.id, message.webhook, message.attempt, error, left)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
