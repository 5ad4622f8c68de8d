"""YAML as its version 1.2 has it: 1e-3 is a number, `no` and 12:30 are texts. PyYAML alone reads 1.1, where they are not."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Builds nothing but what JSON has, by the core schema of YAML 1.2, with decimal numbers only."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # as the base class has it


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _integer(_loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)  # YAML 1.1 takes 010 for eight


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parsed(text: str) -> Any:
    """Return the value of a YAML document. Raises ValueError, saying where, for what cannot be read."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"neither JSON nor YAML: {error}") from None
