"""What requests are addressed by: the service's URL, its key, and the ids in its paths, checked before anything is sent."""

import re

import httpx

from wbar.errors import NotFound


def checked_url(url: str) -> str:
    """Return the address. Raises ValueError for what is none of HTTP."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(
            f"{url!r} is no address of a service: http://HOST:PORT is one (WBAR_URL, or the argument `url`)"
        )
    return url


def checked_key(key: str) -> str:
    """Return the key without spaces around it, as it comes from a file. Raises ValueError, without the key in it."""
    key = key.strip()
    wrong = next((at for at, one in enumerate(key, start=1) if not "!" <= one <= "~"), None)
    if wrong is not None:
        raise ValueError(
            f"character {wrong} of the {len(key)} of the API key is none that a key has: check WBAR_API_KEY, the configuration "
            "file or the argument `api_key`"
        )
    return key


def segment(object_id: str) -> str:
    """Return an id as a part of a path. Raises NotFound for what no id can be: `../` in it would address something else."""
    if not isinstance(object_id, str) or not re.fullmatch("[A-Za-z0-9_-]+", object_id):
        raise NotFound(f"nothing has the id {str(object_id)[:80]!r}: ids have letters, digits and _ alone")
    return object_id
