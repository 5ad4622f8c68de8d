"""What options are read as: numbers with commas between them, pairs with an equals sign, and those that were given at all."""

from collections.abc import Callable
from typing import Any, TypeVar

import typer

Number = TypeVar("Number", int, float)


def given(**values: Any) -> dict[str, Any]:
    """Return the options that were given: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Parse 1,2,1. Raises BadParameter."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: numbers with commas between them are wanted, as in 1,2,1", param_hint=option
        ) from None


def tags(pairs: list[str] | None) -> dict[str, str]:
    """Parse key=value pairs. Raises BadParameter."""
    found = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"{pair!r} is not key=value")
        found[key] = value
    return found
