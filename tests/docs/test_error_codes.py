"""Every code that a client may meet is explained in docs/api.md, and no other."""

import re
from collections.abc import Iterator
from pathlib import Path

from wbar import errors

API = Path(__file__).parents[2] / "docs" / "api.md"
BASES = {"error", "rejected"}  # codes of classes that only others are made of


def classes(base: type[errors.WbarError]) -> Iterator[type[errors.WbarError]]:
    for child in base.__subclasses__():
        yield child
        yield from classes(child)


def test_every_code_is_explained() -> None:
    text = API.read_text()
    tables = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    for base in (errors.Refused, errors.JobError):
        codes = {one.code for one in (base, *classes(base)) if one.code not in BASES}
        assert codes - tables == set()
    rejections = {one.code for one in classes(errors.Rejected)} - BASES
    assert {code for code in rejections if f"`{code}`" not in text} == set()


def test_statuses_are_those_that_are_sent() -> None:
    stated = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", API.read_text(), re.MULTILINE))
    sent = {one.code: str(one.status) for one in classes(errors.Refused) if one.code not in BASES}
    assert stated == sent
