"""Pages are templates filled with typed values: what an answer of the dashboard looks like, and the headers that guard it."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from wbar import __version__
from wbar.catalog import ARCHITECTURES
from wbar.measures import Measure
from wbar.results import VERDICTS
from wbar_service import sessions
from wbar_service.auth import KEY
from wbar_service.dashboard.glossary import PHASES, ROWS, STATES, TERMS, VERDICT_WORDS
from wbar_store.keys import KeyRecord

STATIC = Path(__file__).parent / "static"
# Nothing inline, nothing from elsewhere: a name that a user chose runs nothing, wherever it is shown.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)


@cache
def static(name: str) -> str:
    """Return the address of a static file, which changes with its content: browsers keep it for good."""
    return f"/static/{name}?{sha256((STATIC / name).read_bytes()).hexdigest()[:12]}"


def _time(seconds: float | str | None) -> Markup:
    """Return a moment as UTC, which the page's script rewrites in the reader's zone."""
    if seconds is None:
        return Markup("–")
    if isinstance(seconds, str):
        seconds = datetime.fromisoformat(seconds).timestamp()
    moment = datetime.fromtimestamp(seconds, UTC)
    machine, shown = moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M} UTC"
    return Markup('<time datetime="{}">{}</time>').format(machine, shown)


def _duration(seconds: float | None) -> str:
    """Return a duration in the two largest units that it has."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def _bytes(number: float | None) -> str:
    if number is None:
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def _code(text: str, links: bool = False) -> Markup:
    """Return a text whose `names` stand between backticks for a page. links: names of options lead to their fields."""
    parts = escape(text).split("`")
    option = re.compile(r"recipe\.[\w.]+|method\.[\w.]+|classes")

    def named(part: Markup) -> Markup:
        shown = Markup("<code>{}</code>").format(part)
        return Markup('<a href="#{}">{}</a>').format(part, shown) if links and option.fullmatch(part) else shown

    return Markup("").join(named(part) if i % 2 else part for i, part in enumerate(parts))


def _percent(share: float | None, signed: bool = False) -> str:
    return "–" if share is None else f"{100 * share:{'+' if signed else ''}.2f} %"


def _number(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if signed else ''}.4f}"


def _score(value: float | None, measure: Measure, signed: bool = False) -> str:
    """Return a score of a task as pages show it."""
    return _percent(value, signed) if measure.is_share else _number(value, signed)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("wbar_service.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        score=_score, time=_time, duration=_duration, bytes=_bytes, percent=_percent, number=_number, code=_code
    )
    made.globals.update(
        static=static, version=__version__, terms=TERMS, row_terms=ROWS, states=STATES, phases=PHASES,
        verdict_words=VERDICT_WORDS, verdicts=VERDICTS, architectures=tuple(ARCHITECTURES),
    )  # fmt: skip
    return made


def page(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return a template as an answer. values: what it shows."""
    record: KeyRecord | None = request.scope.get(KEY)
    token = sessions.token_of(request)
    shown: Mapping[str, Any] = {
        "request": request,
        "key": record,
        "csrf": sessions.csrf_of(token) if token and record else "",
        "may": frozenset(record.scopes) if record else frozenset(),
        **values,
    }
    return as_page(rendered(template, **shown), status)


def rendered(template: str, **values: Any) -> Markup:
    """Return a template that is filled."""
    return Markup(_environment().get_template(template).render(values))  # noqa: S704  # the template has escaped what it shows


def as_page(body: str, status: int = 200) -> Response:
    """Return a page, or a part of one, with the headers that guard it."""
    return HTMLResponse(body, status, {"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})
