"""Logs of every process as JSON lines that can be joined: each carries the request, tenant, job and attempt it belongs to."""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from pythonjsonlogger.json import JsonFormatter

_context: ContextVar[dict[str, str | int] | None] = ContextVar("wbar_log_context", default=None)


@contextmanager
def belonging_to(**names: str | int) -> Iterator[None]:
    """Have every line that is logged in the block, on this thread or task, carry these names."""
    token = _context.set({**(_context.get() or {}), **names})
    try:
        yield
    finally:
        _context.reset(token)


def current() -> dict[str, str | int]:
    """Return the names that lines carry here, to hand them to a thread or a process that works for the same."""
    return dict(_context.get() or {})


def note(**names: str | int) -> None:
    """Add names to the lines of the block that is open, from here to its end."""
    context = _context.get()
    if context is not None:
        context.update(names)


class _Belonging(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        vars(record).update(_context.get() or {})
        return True


def configure(part: str, belongs: Mapping[str, str | int] | None = None) -> None:
    """Log to stderr, one JSON object a line. part: of the service, which each line names, beside what it `belongs` to."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Belonging())
    names = {"levelname": "level", "name": "logger"}
    fields = "%(levelname)s %(name)s %(message)s"
    handler.setFormatter(
        JsonFormatter(
            fields,
            rename_fields=names,
            timestamp="time",
            static_fields={"part": part, **(belongs or {})},
            json_ensure_ascii=True,
        )
    )
    logging.captureWarnings(True)  # Python's own would be text between the lines
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
