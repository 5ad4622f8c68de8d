"""The texts that users give and that are shown to others: names, labels, tags. One rule for all of them.

What cannot be stored or sent (lone surrogates, NUL), what moves a cursor or hides itself (control characters) and what a
spreadsheet runs (a leading `=`) is refused on the way in.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

LONGEST_NAME = 256  # characters
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, halves of surrogate pairs

# The same for clients, as the schema says it (and a little more: a name that is not blank may begin with a space).
TEXT_PATTERN = r"^[^\u0000-\u001f\u007f-\u009f]*$"
NAME_PATTERN = r"^[^\s\u0000-\u001f\u007f-\u009f=][^\u0000-\u001f\u007f-\u009f]*$"


def fault_of(text: str) -> str | None:
    """Return what is wrong with a text that is to be stored and shown; None for a good one."""
    found = _UNSHOWABLE.search(text)
    return None if found is None else f"character {found.start() + 1} is U+{ord(found[0]):04X}, which cannot be shown"


def name_fault_of(text: str) -> str | None:
    """Return what is wrong with a name, which is also not blank and begins with no `=`; None for a good one."""
    if not text.strip():
        return "it is blank"
    if text.startswith("="):
        return "it begins with `=`, which a spreadsheet would run"
    return fault_of(text)


def _text(text: str) -> str:
    fault = fault_of(text)
    if fault is not None:
        raise ValueError(fault)
    return text


def _name(text: str) -> str:
    fault = name_fault_of(text)
    if fault is not None:
        raise ValueError(fault)
    return text


Text = Annotated[str, Field(json_schema_extra={"pattern": TEXT_PATTERN}), AfterValidator(_text)]
Name = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME, json_schema_extra={"pattern": NAME_PATTERN}),
    AfterValidator(_name),
]
ClassName = Annotated[
    str, Field(min_length=1, max_length=512, json_schema_extra={"pattern": NAME_PATTERN}), AfterValidator(_name)
]
