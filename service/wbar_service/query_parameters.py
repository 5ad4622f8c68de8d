"""Parameters of the query are known by name and written in one way; anything else is refused, as unknown fields of a body are.

A filter that is misspelt would otherwise keep everything.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from fastapi.dependencies.models import Dependant
from pydantic import BeforeValidator

from wbar.errors import FieldError, ValidationFailed

TAG = re.compile(r"metadata\[.*\]", re.DOTALL)  # of the list of jobs


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch("[0-9]+", value):
        raise ValueError("a whole number is written in digits alone")
    return value


# For whole numbers: pydantic's own reading takes 1_0, +5 and 1.0 too. Bounds stand before it, or the schema would lose them.
DIGITS = BeforeValidator(_digits)


def names_of(dependant: Dependant) -> frozenset[str]:
    """Return the names of the query parameters that a route and what it depends on take."""

    def found(one: Dependant) -> Iterator[str]:
        yield from (parameter.alias for parameter in one.query_params)
        for needed in one.dependencies:
            yield from found(needed)

    return frozenset(found(dependant))


def check_names(given: Iterable[str], known: frozenset[str], takes_tags: bool) -> None:
    """Raise ValidationFailed (422) for a parameter that a route does not take. takes_tags: whether it takes metadata[KEY]."""
    unknown = [name for name in dict.fromkeys(given) if name not in known and not (takes_tags and TAG.fullmatch(name))]
    if not unknown:
        return
    there_are = f"it takes {', '.join(sorted(known))}" if known else "it takes none"
    errors = [
        FieldError(pointer="", parameter=name[:80], detail=f"no parameter of this request{_near(name, known)}")
        for name in unknown[:20]
    ]
    raise ValidationFailed(f"{unknown[0][:80]!r} is {errors[0]['detail']}: {there_are}", errors)


def _near(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name[:80], known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
