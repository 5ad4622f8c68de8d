"""Opaque ids with a type prefix that sort by creation: 64 bits of microseconds, then 40 random bits, in base 32."""

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u
_lock = threading.Lock()
_last = 0


def new_id(prefix: str) -> str:
    """For example `job_0mk3q8v1zr5d2a7x9c4tq`. Strictly growing within a process, by clock between processes."""
    global _last
    with _lock:
        _last = max(_last + 1, time.time_ns() // 1000)
        value = (_last << 40) | secrets.randbits(40)
    digits = []
    for _ in range(21):
        value, digit = divmod(value, 32)
        digits.append(_ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"
