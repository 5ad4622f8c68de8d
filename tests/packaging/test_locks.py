"""The lock files pin what pyproject.toml asks for, by digest, and name no place to get it from."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packaging.environments import ROOT

EXTRAS = {"service": {"service", "store"}, "worker": {"worker", "store", "average"}}


@pytest.mark.parametrize("part", EXTRAS)
def test_a_lock_pins_what_is_asked_for(part: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(one for extra in EXTRAS[part] for one in project["optional-dependencies"][extra]),
    ]
    text = (ROOT / "locks" / f"{part}.txt").read_text()
    pinned = {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", text, re.M)
    }
    assert "://" not in text
    assert "--index-url" not in text
    for name in re.findall(r"^([\w.-]+)", text, re.M):
        entry = text[re.search(rf"^{re.escape(name)}[=\[]", text, re.M).start() :]  # type: ignore[union-attr]
        assert "--hash=sha256:" in entry.split("# via")[0], name
    for one in map(Requirement, asked):
        if one.name != "wbar":
            assert one.specifier.contains(pinned[canonicalize_name(one.name)], prereleases=True), one
