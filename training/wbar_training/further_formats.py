"""The files of the weights in further formats, each made where the job asked for it; none of them is ever the end of a job."""

from dataclasses import dataclass
from pathlib import Path

from wbar.results import FurtherFormat, OfferedFormat
from wbar_training.distributed.ranks import Ranks
from wbar_training.onnx_file import make_onnx
from wbar_training.pt2_file import write_pt2
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup


@dataclass(frozen=True)
class FurtherFiles:
    """The files that could be made. offered: what became of each format that was asked for."""

    offered: list[OfferedFormat]
    paths: dict[FurtherFormat, Path]


def make_further_files(setup: Setup, reporter: Reporter, weights: Path) -> FurtherFiles:
    """Make the formats that a job asked for of the weights file that is delivered; every rank has the same answer."""
    offered, paths = list[OfferedFormat](), dict[FurtherFormat, Path]()
    for format in setup.spec.formats:
        if format == "onnx":
            onnx = make_onnx(setup, reporter, weights)
            offered.append(onnx.offered)
            path = onnx.path
        else:
            path = weights.with_suffix(".pt2")
            made = Ranks.here().from_leader(write_pt2(setup, reporter, weights, path) if Ranks.here().leads else None)
            assert made is not None
            offered.append(made)
            path = path if made.reason is None else None
        if path is not None:
            paths[format] = path
    return FurtherFiles(offered, paths)
