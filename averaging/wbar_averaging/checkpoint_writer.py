"""A result's files: one, or shards with their index, complete and synced before any of them gets its own name."""

import json
import math
import os
from pathlib import Path
from typing import IO

import numpy as np

from wbar_averaging.replacing import index_of, replace_checkpoint, shard_of
from wbar_averaging.safetensors_file import SIZES, header_bytes
from wbar_averaging.streamed_mean import Combination, Plan


def write_checkpoint(
    plan: Plan, combination: Combination, out: Path, scratch: Path, max_shard_bytes: int | None
) -> Path:
    """Write the result and return its path: `out`, or the index of its shards.

    All files are complete and synced in `scratch` before one gets its own name; what lay under `out` is replaced.
    """
    # The order of write_safetensors: by falling alignment, then by name.
    order = sorted(range(len(plan.names)), key=lambda index: (-SIZES[plan.dtypes[index]], plan.names[index]))
    shards = _shards(plan, order, max_shard_bytes)
    finals = [out] if len(shards) == 1 else [shard_of(out, n, len(shards)) for n in range(1, len(shards) + 1)]
    written = [(scratch / final.name, final) for final in finals]
    with np.errstate(all="ignore"):  # what is not finite is refused, with its name
        for shard, (path, _) in zip(shards, written, strict=True):
            tensors = [(plan.names[index], plan.dtypes[index], list(plan.shapes[index])) for index in shard]
            with open(path, "wb") as file:
                file.write(header_bytes(tensors, plan.metadata))
                for index in shard:
                    file.writelines(combination.pieces(index))
                sync(file)
    if len(shards) > 1:
        homes = {plan.names[index]: final.name for shard, final in zip(shards, finals, strict=True) for index in shard}
        written.append((scratch / "index", index_of(out)))
        _write_index(written[-1][0], homes, sum(map(plan.bytes, order)))
    replace_checkpoint(written, out, scratch)
    return written[-1][1]


def _shards(plan: Plan, order: list[int], max_shard_bytes: int | None) -> list[list[int]]:
    shards, room = [list[int]()], max_shard_bytes or math.inf
    for index in order:
        size = plan.bytes(index)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes or math.inf
        shards[-1].append(index)
        room -= size
    return shards


def _write_index(path: Path, homes: dict[str, str], total: int) -> None:
    with open(path, "wb") as file:
        content = {"metadata": {"total_size": total}, "weight_map": homes}
        file.write(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        sync(file)


def sync(file: IO[bytes]) -> None:
    """Wait until the file's content is on the disk."""
    file.flush()
    os.fsync(file.fileno())
