"""The training series as a file: CSV as the API writes it, or Parquet with the types of its fields."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wbar.client import Client
from wbar.jobs import MetricsPoint


def write_csv(client: Client, job_id: str, target: Path) -> None:
    """Write the series as CSV; what stood at `target` is replaced once it is complete. Raises NotFound, Unreachable."""
    answer = client.request("GET", f"/v1/jobs/{job_id}/metrics", params={"format": "csv"})
    _replace(target, lambda path: path.write_bytes(answer.content))


def write_parquet(client: Client, job_id: str, target: Path) -> None:
    """Write the series as Parquet, with the job as metadata of the file (`wbar.job`, its JSON). Raises as `write_csv`."""
    import pyarrow
    import pyarrow.parquet

    types: dict[Any, Any] = {int: pyarrow.int64(), str: pyarrow.string()}  # the others are numbers that may be missing
    fields = [
        pyarrow.field(name, types.get(known.annotation, pyarrow.float64()))
        for name, known in MetricsPoint.model_fields.items()
    ]
    job, points = client.jobs.get(job_id), client.jobs.metrics(job_id)
    schema = pyarrow.schema(fields, metadata={"wbar.job": job.model_dump_json()})
    table = pyarrow.Table.from_pylist([point.model_dump() for point in points], schema=schema)
    _replace(target, lambda path: pyarrow.parquet.write_table(table, path))


def _replace(target: Path, write: Callable[[Path], Any]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
