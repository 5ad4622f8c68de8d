"""The long lists of a JSON document, one entry at a time, so that it is never there as a whole.

As Python's objects a document takes several times the room of its text: COCO's own annotations of 450 MB take 3 GB. Each entry
is decoded by itself, and what its reader does not keep of it is free before the next.
"""

import json
import re
from collections.abc import Collection, Generator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_LONGEST = 400  # digits: what has more is beyond any float, and Python would refuse to read it


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST else float(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def entries(text: str, lists: Collection[str]) -> Generator[tuple[str, int, Any], None, None]:
    """Yield the entries of the lists that the document, an object, has under these names: name, number from 0, and entry.

    What is under other names is decoded, a list of it entry by entry, and let go.

    Raises ValueError where it is no JSON, and where a list is missing, is there twice, or is something else: some entries may
    have been yielded before. Raises RecursionError where it is nested too deeply.
    """
    missing = dict.fromkeys(lists)
    sign, at = _sign(text, '"}', _sign(text, "{", 0)[1])
    while sign == '"':
        name, at = _DECODER.raw_decode(text, at - 1)
        at = _sign(text, ":", at)[1]
        if name in lists and name not in missing:
            raise ValueError(f"{name}: there are two of this name")
        missing.pop(name, None)
        at = yield from _entries(text, name, at, wanted=name in lists)
        sign, at = _sign(text, ",}", at)
        if sign == ",":
            sign, at = _sign(text, '"', at)
    rest = _skip(text, at)
    if rest != len(text):
        raise json.JSONDecodeError("Extra data", text, rest)
    for name in missing:
        raise ValueError(f"{name}: Field required")


def _entries(text: str, name: str, at: int, wanted: bool) -> Generator[tuple[str, int, Any], None, int]:
    """Yield the entries of the list at a place, where they are wanted; returns the place after it."""
    at = _skip(text, at)
    if text[at : at + 1] != "[":
        end = _value(text, at)[1]
        if wanted:
            raise ValueError(f"{name}: Input should be a list")
        return end
    at, number = _skip(text, at + 1), 0
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        entry, at = _value(text, at)
        if wanted:
            yield name, number, entry
        number += 1
        sign, at = _sign(text, ",]", at)
        if sign == "]":
            return at


def _value(text: str, at: int) -> tuple[Any, int]:
    """Return the value at a place, and the place after it."""
    found: tuple[Any, int] = _DECODER.raw_decode(text, _skip(text, at))
    return found


def _sign(text: str, expected: str, at: int) -> tuple[str, int]:
    """Return the sign at a place, which must be one of those expected, and the place after it."""
    at = _skip(text, at)
    found = text[at : at + 1]
    if not found or found not in expected:
        raise json.JSONDecodeError(f"Expecting {' or '.join(map(repr, expected))}", text, at)
    return found, at + 1


def _skip(text: str, at: int) -> int:
    """Return the place of the first character from here that is no space."""
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()
