"""The child's side of a merge: combine files under limits, and send how far it is and how it ended.

It imports no torch of its own; its files are safetensors, which the worker fetched.
"""

import errno
import logging
import time
from collections.abc import Sequence

import numpy as np

from wbar.checkpoints import Fault
from wbar.errors import CheckpointsDiffer, ContentTooLarge, MergeFailed, NonFiniteWeights
from wbar.merges import DareMerge, MeanMerge, MergeSpec, TaskArithmeticMerge, TiesMerge
from wbar_averaging.decay_weights import EMA
from wbar_averaging.merging import Dare, MergeMethod, TaskArithmetic, Ties, WeightedMean, merge_checkpoints
from wbar_averaging.streamed_mean import Mismatch, NotFinite
from wbar_training.messages import Crashed
from wbar_worker.children import Merged, MergeEnding, MergeProgress, MergeRefused, MergeWork
from wbar_worker.processes import ControlChannel, confine, first_line

TOLD_SECONDS = 0.5  # between two messages about how far it is


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

    spec = work.spec
    paths = [work.folder / f"{source.id}.safetensors" for source in spec.sources]
    base = None if spec.base is None else work.folder / f"{spec.base.id}.safetensors"
    try:
        merge_checkpoints(paths, work.out, method_of(spec), base=base, dtype=spec.dtype, progress=tell)
    except ValueError as error:
        message = str(error).replace(f"{work.folder}/", "").replace(".safetensors", "")
        code = next((code for kind, code in CODES if isinstance(error, kind)), MergeFailed.code)
        return MergeRefused(fault=Fault(code=code, message=message))
    except OSError as error:
        if error.errno == errno.EFBIG:
            return MergeRefused(fault=Fault(code=ContentTooLarge.code, message="the merged weights would be too large"))
        logging.getLogger("wbar").exception("the merge failed")
        return Crashed(why=first_line(error))
    except Exception as error:
        logging.getLogger("wbar").exception("the merge failed")
        return Crashed(why=first_line(error))
    return Merged()


CODES: Sequence[tuple[type[ValueError], str]] = (
    (Mismatch, CheckpointsDiffer.code),
    (NotFinite, NonFiniteWeights.code),
)


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
