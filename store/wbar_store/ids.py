"""Opaque ids with a type prefix that sort by creation: 64 bits of microseconds, then 40 random bits, in base 32.

The prefix is the only thing that is ever read off an id, and it is read here.
"""

import re
import secrets
import threading
import time
from typing import Literal, get_args

Kind = Literal["ckpt", "ds", "job", "snap", "key", "hook", "msg", "upload", "merge", "study"]
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u
_lock = threading.Lock()
_last = 0


def new_id(kind: Kind) -> str:
    """Return a new id, for example `job_0mk3q8v1zr5d2a7x9c4tq`: growing within a process, by clock between processes."""
    global _last
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1000)
        value = (_last << 40) | secrets.randbits(40)
    digits = []
    for _ in range(21):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return f"{kind}_{''.join(reversed(digits))}"


def is_id(kind: Kind, text: str) -> bool:
    """Return whether a text has the form of an id of this kind."""
    return re.fullmatch(rf"{kind}_[0-9a-z]+", text) is not None


def kind_of(object_id: str) -> Kind | None:
    """Return the kind of object that an id names, by its prefix; None for an unknown prefix."""
    prefix = object_id.partition("_")[0]
    return next((kind for kind in get_args(Kind) if kind == prefix), None)
