"""What every command prints: text for people, or with `--json` one value for programs; and how a command ends.

Whether JSON is wanted is known here alone: `with_json` gives a command the option, `answer` and the others look at it.
"""

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer

from wbar.errors import FieldError, Refused, Unreachable, WbarError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.progress import Progress

    from wbar.client import Client
    from wbar.lists import Page
    from wbar.transfers import Step

FAILED, USAGE, REFUSED, UNREACHABLE, DETACHED = 1, 2, 3, 4, 130
P = ParamSpec("P")
R = TypeVar("R")
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", show_default=False)]


class _Run:
    """What this run of the command line was asked for."""

    json = False


@dataclass(frozen=True)
class Problem:
    """Why a command could not do its work, as RFC 9457 has it; status: the service's answer, None without one."""

    type: str
    title: str
    status: int | None
    detail: str
    code: str
    errors: list[FieldError] | None


def with_json(command: Callable[P, R]) -> Callable[P, R]:
    """Give a command the option `--json`; it then prints by `answer`, `answer_page`, `note`."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        _Run.json = bool(kwargs.pop("as_json", False))
        return command(*args, **kwargs)

    own = inspect.signature(command)
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_JSON)
    wrapped.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]  # read by inspect
    wrapped.__annotations__ = {**command.__annotations__, "as_json": _JSON}
    return wrapped


def wants_json() -> bool:
    """Return whether this run prints JSON."""
    return _Run.json


def need(extra: str, *modules: str) -> None:
    """End with a sentence naming the extra if one of its modules is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        typer.echo(f"this command needs {', '.join(missing)}: pip install 'wbar[{extra}]'", err=True)
        raise typer.Exit(USAGE)


@cache
def console(stderr: bool = False) -> "Console":
    """Return the console of stdout or stderr, which is silent where JSON is wanted."""
    # Loaded here: `wbar --help` and whatever prints one line need no rich.
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, quiet=_Run.json)


def connected() -> "Client":
    """Return the client, which ends with the block."""
    # Loaded here: pydantic and httpx are most of the start-up of commands that work offline.
    from wbar.client import Client

    return Client()


def note(message: str, style: str | None = None) -> None:
    """Print a line beside the answer, on stderr; not where JSON is wanted."""
    console(stderr=True).print(message, style=style, markup=False, soft_wrap=True)


def print_json(value: "BaseModel | dict[str, Any] | list[Any]") -> None:
    """Print a value as indented JSON on stdout."""
    dump = getattr(value, "model_dump_json", None)
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False) if dump is None else dump(indent=2))


def answer(value: "BaseModel | dict[str, Any]", text: str | None) -> None:
    """Print what a command found out or did: the value where JSON is wanted, else the text."""
    if _Run.json:
        print_json(value)
    else:
        typer.echo(text)


def answer_page(page: "Page[Any]", columns: Sequence[str], row: Callable[[Any], Sequence[object]]) -> None:
    """Print a page of a list: as the API has it, or as a table with a row for each of its objects."""
    if _Run.json:
        print_json(page)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    for item in page.data:
        table.add_row(*(escape(str(value)) for value in row(item)))
    console().print(table)
    if page.has_more:
        note(f"there are more: --after {page.last_id}", "dim")


def transfer() -> "Progress":
    """Return a bar that counts transferred bytes."""
    from wbar import display

    return display.transfer(console(stderr=True))


def step(bar: "Progress", description: str) -> "Step":
    """Return what moves the bar."""
    task = bar.add_task(description, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def end(error: Exception, code: int) -> NoReturn:
    """Say why it could not be done, and end with the exit code."""
    problem = _problem(error)
    if _Run.json:
        typer.echo(json.dumps(asdict(problem), ensure_ascii=False), err=True)
    else:
        note(f"{problem.code}: {problem.detail}", "red")
        for item in problem.errors or []:
            note(f"  {json.dumps(item)}")
    sys.exit(code)


def _problem(error: Exception) -> Problem:
    code = error.code if isinstance(error, WbarError) else "timeout" if isinstance(error, TimeoutError) else "error"
    status, errors = None, None
    if isinstance(error, Refused):
        title, status, errors = error.title, error.status, error.errors
    elif isinstance(error, Unreachable):
        title = "No service answers"
    else:
        title = "The content is refused" if isinstance(error, WbarError) else "The command cannot do this"
    return Problem(f"urn:wbar:problem:{code}", title, status, str(error), code, errors)
