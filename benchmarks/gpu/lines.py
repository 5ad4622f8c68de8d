"""A finished result is one JSON line on stdout, printed at once: what ends a run early loses nothing that was measured."""

import json
from pathlib import Path
from typing import Any


def say(name: str, **figures: Any) -> None:
    """Print one finished result."""
    print(json.dumps({"name": name, **figures}), flush=True)


def read(path: Path | None) -> list[dict[str, Any]]:
    """Return the results of a file of lines; of no file, none. A line that was cut off is left out."""
    if path is None or not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [one for one in found if isinstance(one, dict) and "name" in one]


def done(path: Path | None) -> set[str]:
    """Return the names of the results that the file has, without those that failed."""
    return {one["name"] for one in read(path) if "error" not in one}
