"""The files of the weights in further formats, each made where the job asked for it; none of them is ever the end of a job."""

from dataclasses import dataclass
from pathlib import Path

from wbar.results import OfferedFormat
from wbar_training.distributed.ranks import Ranks
from wbar_training.hub_config import hub_config
from wbar_training.onnx_file import make_onnx
from wbar_training.outcome import HubConfig
from wbar_training.pt2_file import write_pt2
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup


@dataclass(frozen=True)
class FurtherFiles:
    """The files that could be made.

    offered: what became of each format that was asked for; of the folder, which the worker packs, the worker says it.
    hub: what a folder of the weights has beside them, where the job asked for one.
    """

    offered: list[OfferedFormat]
    onnx: Path | None
    pt2: Path | None
    hub: HubConfig | None


def make_further_files(setup: Setup, reporter: Reporter, weights: Path) -> FurtherFiles:
    """Make the formats that a job asked for of the weights file that is delivered; every rank has the same answer."""
    spec, offered, onnx, pt2, hub = setup.spec, list[OfferedFormat](), None, None, None
    if "onnx" in spec.formats:
        made = make_onnx(setup, reporter, weights)
        offered.append(made.offered)
        onnx = made.path
    if "pt2" in spec.formats:
        path, ranks = weights.with_suffix(".pt2"), Ranks.here()
        one = ranks.from_leader(write_pt2(setup, reporter, weights, path) if ranks.leads else None)
        assert one is not None
        offered.append(one)
        pt2 = path if one.reason is None else None
    if "huggingface" in spec.formats:
        hub = hub_config(spec.network, weights, spec.start.prefix, setup.data.task.name)
    return FurtherFiles(offered, onnx, pt2, hub)
