"""What `wbar doctor` finds where no part is set up by itself: the service that the client's configuration names.

It is asked over its API, as the command line asks it; what it keeps is not touched.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
from pydantic import ValidationError

from wbar import __version__, config
from wbar.client import Client
from wbar.config import Config
from wbar.errors import Refused, Unreachable
from wbar.workers import Worker
from wbar_service.health import Health, Readiness
from wbar_service.host_checks import Finding, disk

SECONDS = 10.0  # for an answer
OPERATORS = "for parts that run by themselves set WBAR_DATABASE_URL, WBAR_BROKER_URL and WBAR_BLOBS_URL"


def examine() -> Iterator[Finding]:
    """Yield what is found of the service that the command line would talk to; nothing is changed, and no file made."""
    try:
        known = config.current()
    except ValueError as error:
        yield Finding("configuration", "fault", str(error), "delete it, and start `wbar up`, which writes it")
        return
    if config.path().exists():
        yield Finding("configuration", "ok", f"{config.path()} ({known.url})")
    elif known.api_key is not None:
        yield Finding("configuration", "ok", f"WBAR_API_KEY, and {known.url}")
    else:
        words = f"{config.path()} is not there, so {known.url} is asked"
        yield Finding("configuration", "warning", words, "start `wbar up`, which writes it")
    try:
        version = _ask(known, "/healthz").json()
        yield _version(known, Health.model_validate(version).version)
    except (httpx.HTTPError, ValueError) as error:
        yield Finding("service", "fault", f"{known.url} does not answer ({_reason(error)})", _start(known))
        return
    yield from _parts(known)
    yield from _key(known)
    if known.data is not None and Path(known.data).exists():
        yield disk("data's disk", Path(known.data))


def _ask(known: Config, path: str) -> httpx.Response:
    return httpx.get(f"{known.url}{path}", timeout=SECONDS, trust_env=False)


def _version(known: Config, there: str) -> Finding:
    if there == __version__:
        return Finding("service", "ok", f"{known.url} answers, with wbar {there}")
    words = f"{known.url} answers with wbar {there}, and this is {__version__}"
    return Finding("service", "warning", words, f"restart it with this version, or pip install wbar=={there} here")


def _start(known: Config) -> str:
    data = f" --data {known.data}" if known.data is not None else ""
    return f"start it with `wbar up{data}`, or name another one by WBAR_URL and WBAR_API_KEY; {OPERATORS}"


def _parts(known: Config) -> Iterator[Finding]:
    try:
        ready = Readiness.model_validate_json(_ask(known, "/readyz").content)
    except (httpx.HTTPError, ValidationError) as error:
        yield Finding("parts", "fault", f"/readyz does not answer ({_reason(error)})", _log(known))
        return
    for part, found in ready.checks.items():
        if part != "workers":
            yield (
                Finding(part, "ok", "as the service finds it")
                if found == "ok"
                else Finding(part, "fault", found, _log(known))
            )
    for queue, count in ready.workers.items():
        if count:
            yield Finding(f"{queue} workers", "ok", f"{count} live")
        else:
            yield Finding(f"{queue} workers", "fault", "none lives", _log(known))


def _key(known: Config) -> Iterator[Finding]:
    try:
        with Client(known.url, known.api_key, timeout=SECONDS, retries=0) as client:
            workers = client.workers.list().data
    except Refused as error:
        fix = "make one with `wbar keys create` elsewhere, or `wbar first-key`; or start `wbar up` again, which writes one"
        yield Finding("API key", "fault", f"{error.code}: {error.detail}", fix)
    except (Unreachable, ValueError) as error:
        yield Finding("API key", "fault", _reason(error), _log(known))
    else:
        shown = ", ".join(_shown(one) for one in workers) or "no worker lives"
        yield Finding("API key", "ok", f"opens the service; {shown}")


def _shown(worker: Worker) -> str:
    return f"{worker.id} ({worker.slots} on {worker.device})"


def _log(known: Config) -> str:
    return f"see {Path(known.data) / 'wbar.log'}, and start `wbar up` again" if known.data else "look at its log"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
