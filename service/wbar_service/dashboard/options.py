"""The options of a job as a flat table: by dotted path, what was asked for and what it became."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wbar.job_request import OPTIONS
from wbar_store.job_records import JobRecord


@dataclass(frozen=True)
class Option:
    """One option. asked: the text that was sent; None where it was left out. value: the text it became."""

    path: str
    asked: str | None
    value: str


def options_of(job: JobRecord) -> list[Option]:
    """Return every option of a job, in the order of the request's fields."""
    resolved = job.to_api().model_dump(mode="json", include=set(OPTIONS))
    asked = dict(flat({name: value for name, value in (job.request or {}).items() if name in OPTIONS}))
    values = dict(flat({name: resolved[name] for name in OPTIONS}))
    return [Option(path, asked.get(path), value) for path, value in values.items()]


def flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted path and the text of every leaf; null ones are left out."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
