"""The outcome of a run: the result, and the files of the weights, each in both formats."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wbar.results import JobResult


class WeightsFiles(NamedTuple):
    """One network in both formats. pytorch: the tensors of `safetensors`, as torch.save writes them."""

    safetensors: Path
    pytorch: Path


class ProbeFiles(NamedTuple):
    """The files of a job's probe images.

    outputs: numpy's npz, see `wbar_training.probe_images`.
    thumbnails: PNG, the images of `result.probe.most_changed` side by side, squares.
    """

    outputs: Path
    thumbnails: Path


@dataclass(frozen=True)
class HubConfig:
    """The files beside the weights in a folder that transformers or timm loads, as texts.

    config: `config.json`.
    prefix: the part of the weights' names before the network's own, which the folder leaves out.
    preprocessor: `preprocessor_config.json`; None: there is none.
    """

    config: str
    prefix: str
    preprocessor: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    weights: safetensors, the file that `result.weights` describes.
    pytorch: the same tensors as torch.save writes them.
    losses: JSON, the loss of each held-out image of the report split, for w̄ and for the start.
    averaged: w̄, where the guard chose the start, whose weights the two files are then; else None.
    onnx, pt2: the files of these formats, where the job asked for them and they could be had.
    hub: what a folder of the delivered weights has beside them, where the job asked for one.
    probe: the outputs on the probe images, where the job has them.
    swag: safetensors, the Gaussian of the snapshots, where the job asked for it.
    control: safetensors, the control's weights, where the job asked for it and it was trained to its end.
    exact_mean: the sums of w̄ as `wbar_training.exact_mean` writes them, of a replica.
    picture: PNG, some held-out images with what the start and w̄ make of them; None where the task has nothing to see.
    """

    result: JobResult
    weights: Path
    pytorch: Path
    losses: Path | None = None
    averaged: WeightsFiles | None = None
    onnx: Path | None = None
    pt2: Path | None = None
    hub: HubConfig | None = None
    probe: ProbeFiles | None = None
    swag: Path | None = None
    picture: Path | None = None
    exact_mean: Path | None = None
    control: Path | None = None
