"""Names and errors out of strangers' files, made fit for a message: escaped, short, without memory addresses.

A file decides how long its names are and what they hold: control characters that a terminal obeys, halves of surrogate
pairs that no JSON takes, three megabytes. Every message that repeats a part of a file takes it from here.
"""

import re

NAME_LIMIT = 80  # characters of one name: enough to find it
REASON_LIMIT = 300  # characters of another library's error

_ADDRESS = re.compile(r"<[^<>]{0,200}? (?:object )?at 0x[0-9a-fA-F]+>|\b0x[0-9a-fA-F]{7,}\b")


def quoted(name: object, limit: int = NAME_LIMIT) -> str:
    """Return a name between quotation marks, escaped as Python does, its middle left out beyond `limit` characters."""
    text = str(name)
    if len(text) > limit:
        half = (limit - 3) // 2
        return f"{text[:half] + '...' + text[-half:]!r} ({len(text)} characters)"
    return repr(text)


def shown(name: object, limit: int = NAME_LIMIT) -> str:
    """Return a name that begins a message or stands in a list: without quotation marks where it is plain and short."""
    text = str(name)
    return text if len(text) <= limit and text.isprintable() else quoted(text, limit)


def reason(error: BaseException | str, limit: int = REASON_LIMIT) -> str:
    """Return the first line of an error's message, cut, without memory addresses; its type where it has no message."""
    lines = str(error).splitlines() or [type(error).__name__]
    line = _ADDRESS.sub("the file", lines[0][: 4 * limit])
    text = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return text if len(text) <= limit else text[: limit - 3] + "..."
