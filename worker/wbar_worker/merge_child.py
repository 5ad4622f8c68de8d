"""The child's side of a merge: combine files under limits, and send how far it is and how it ended.

It imports no torch of its own; its files are safetensors, which the worker fetched, and of folders the archives that they
were uploaded as, for what lies beside the weights.
"""

import errno
import logging
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from wbar.checkpoints import Fault
from wbar.errors import CheckpointsDiffer, ContentTooLarge, MergeFailed, NonFiniteWeights, Rejected, cut
from wbar.merges import DareMerge, MeanMerge, MergeSpec, TaskArithmeticMerge, TiesMerge
from wbar_averaging.decay_weights import EMA
from wbar_averaging.lora import CONFIG as ADAPTER_CONFIG
from wbar_averaging.lora import WEIGHTS as ADAPTER_WEIGHTS
from wbar_averaging.merging import Dare, MergeMethod, TaskArithmetic, Ties, WeightedMean, merge_checkpoints
from wbar_averaging.model_folder import CARRIED, CONFIG
from wbar_averaging.streamed_mean import Mismatch, NotFinite, Progress
from wbar_training.messages import Crashed
from wbar_training.uploads.model_folders import WEIGHTS, unpack_beside
from wbar_worker.children import Merged, MergeEnding, MergeProgress, MergeRefused, MergeWork
from wbar_worker.hub_folder import pack_folder
from wbar_worker.processes import ControlChannel, confine, first_line

TOLD_SECONDS = 0.5  # between two messages about how far it is
TOLD_RESIDUALS = 100  # modules


def run_merge(work: MergeWork, channel: ControlChannel) -> None:
    """Merge within the limits; the last message says how it ended."""
    confine(work.memory, work.seconds, work.file_bytes)
    channel.send(_ending(work, channel))


def _ending(work: MergeWork, channel: ControlChannel) -> MergeEnding:
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_SECONDS:
            told = time.monotonic()
            channel.send(MergeProgress(fraction=done / max(1, total)))

    try:
        return Merged(residuals=_merge(work, tell))
    except ValueError as error:
        message = _of_ids(work, str(error))
        code = next((code for kind, code in CODES if isinstance(error, kind)), MergeFailed.code)
        return MergeRefused(fault=Fault(code=code, message=message))
    except Rejected as error:
        return MergeRefused(fault=Fault(code=error.code, message=_of_ids(work, error.detail)))
    except MemoryError:
        message = f"merging needs more than the {work.memory:,} bytes of memory that it may use (WBAR_INGEST_MEMORY)"
        if rank := lora_rank_of(work.spec):
            message += f": ask for a smaller `lora_rank` than {rank}"
        return MergeRefused(fault=Fault(code=ContentTooLarge.code, message=message))
    except OSError as error:
        if error.errno == errno.EFBIG:
            message = (
                f"the result would have more than {work.file_bytes:,} bytes: ask for less, or for a narrower `dtype`"
            )
            return MergeRefused(fault=Fault(code=ContentTooLarge.code, message=message))
        logging.getLogger("wbar").exception("the merge failed")
        return Crashed(why=first_line(error))
    except Exception as error:
        logging.getLogger("wbar").exception("the merge failed")
        return Crashed(why=first_line(error))


def _merge(work: MergeWork, tell: Progress) -> dict[str, float] | None:
    """Write the result to `work.out`; return what a rank left out of adapters, the largest."""
    spec = work.spec
    first, *others = dict.fromkeys(source.id for source in spec.inputs)  # one may be named twice
    places = {first: _place(work, first, CARRIED), **{source: _place(work, source, (CONFIG,)) for source in others}}
    folder = work.out.with_name("merged")
    merged = merge_checkpoints(
        [places[source.id] for source in spec.sources],
        work.out if spec.format == "safetensors" else folder,
        method_of(spec),
        base=None if spec.base is None else places[spec.base.id],
        dtype=spec.dtype,
        max_shard_bytes=spec.max_shard_bytes,
        lora_rank=lora_rank_of(spec),
        progress=tell,
    )
    if spec.format == "huggingface":
        pack_folder(work.out, folder)
    worst = sorted(merged.residuals.items(), key=lambda item: (-item[1], item[0]))[:TOLD_RESIDUALS]
    return dict(worst) or None


def _place(work: MergeWork, source: str, names: Collection[str]) -> Path:
    """Return the file of an input; of one with an archive, a folder with the files of these names that lie beside it there."""
    weights, archive = work.folder / f"{source}.safetensors", work.folder / f"{source}.archive"
    if source not in work.spec.archives:
        return weights
    place = work.folder / source
    place.mkdir()
    is_adapter = lora_rank_of(work.spec) is not None  # a whole network may have an adapter's configuration beside it
    try:
        unpack_beside(archive, {*names, ADAPTER_CONFIG} if is_adapter else names, place, work.limits, is_adapter)
    except Rejected as error:
        raise type(error)(f"{source}: {error.detail}") from None
    archive.unlink()
    weights.rename(place / (ADAPTER_WEIGHTS if is_adapter else WEIGHTS))
    return place


def _of_ids(work: MergeWork, message: str) -> str:
    """Return a message with the ids of inputs in place of their files."""
    message = message.replace(f"{work.folder}/", "")
    for source in work.spec.inputs:
        message = message.replace(f"{source.id}.safetensors", source.id)
    return cut(message)


CODES: Sequence[tuple[type[ValueError], str]] = (
    (Mismatch, CheckpointsDiffer.code),
    (NotFinite, NonFiniteWeights.code),
)


def lora_rank_of(spec: MergeSpec) -> int | None:
    """Return the rank that merged adapters are written with; None of whole networks."""
    return spec.method.lora_rank if isinstance(spec.method, MeanMerge) else None


def method_of(spec: MergeSpec) -> MergeMethod:
    """Return the library's method for a spec's."""
    match spec.method:
        case MeanMerge(weights=weights, shape=shape, ema=ema):
            return WeightedMean(weights or shape or (None if ema is None else f"{EMA}{ema!r}"), np.float64)
        case TaskArithmeticMerge(scale=scale):
            return TaskArithmetic(scale)
        case TiesMerge(density=density, scale=scale):
            return Ties(density, scale)
        case DareMerge(drop=drop, scale=scale, seed=seed):
            return Dare(drop, scale, seed)
