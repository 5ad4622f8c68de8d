"""The averaged weights as an ONNX file, which is offered only where onnxruntime agrees with the network on held-out images.

The network is rebuilt from the weights file, float32, on the CPU, and exported by torch's own exporter with a free batch
size. What the file needs to be used lies in it, as in the safetensors file: classes, image size, normalization. Its input is
normalized already, as the network's is. Where the export fails, or the outputs differ, there is no file, and the result
says why: the weights are there already, so that is never the end of a job.
"""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from wbar.results import OfferedFormat
from wbar_training.distributed.ranks import Ranks
from wbar_training.evaluate import even_slices
from wbar_training.networks import architectures
from wbar_training.reporter import Reporter
from wbar_training.result_writer import weights_file
from wbar_training.setup import Setup

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of |a − b| / max(1, |b|), over all logits
IMAGES = 256  # of the report split, at most
BATCH = 32
MOST_BYTES = 2**31 - 2**24  # a protobuf message ends at 2 GiB; the rest is for the graph
INPUT, OUTPUT = "input", "logits"


class _Absent(Exception):
    """Raised where there can be no file; the message says why."""


@dataclass(frozen=True)
class OnnxOutcome:
    """The outcome of an export. path: the file, where `offered` has one."""

    offered: OfferedFormat
    path: Path | None


def make_onnx(setup: Setup, reporter: Reporter, weights: Path) -> OnnxOutcome:
    """Make and check the ONNX file of a weights file, beside it; every rank has the same answer.

    weights: the safetensors file that is delivered.
    """
    made = None
    if Ranks.here().leads:
        made = _made(setup, reporter, weights)
    outcome = Ranks.here().from_leader(made)
    assert outcome is not None
    return outcome


def _made(setup: Setup, reporter: Reporter, weights: Path) -> OnnxOutcome:
    path = weights.with_suffix(".onnx")
    path.unlink(missing_ok=True)  # of an attempt that was killed here
    try:
        difference, images = _export_and_check(setup, weights, path)
    except (
        Exception
    ) as error:  # an exporter, a graph optimizer and a runtime: it may be almost any, and the weights are there
        path.unlink(missing_ok=True)
        reason = _why(error)
        reporter.log("warning", f"there is no ONNX file: {reason}")
        return OnnxOutcome(OfferedFormat(format="onnx", reason=reason), None)
    reporter.log("info", f"ONNX: the outputs differ by {difference:.2g} at most, on {images} held-out images")
    file = weights_file(path)
    offered = OfferedFormat(
        format="onnx", bytes=file.bytes, sha256=file.sha256, difference=difference, images=images
    )  # fmt: skip
    return OnnxOutcome(offered, path)


def _export_and_check(setup: Setup, weights: Path, path: Path) -> tuple[float, int]:
    """Return the largest difference, and the number of images that it is of. Raises _Absent, and what the exporter raises."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise _Absent(f"the worker has no {', '.join(missing)}: its operator installs wbar[onnx]")
    if weights.stat().st_size > MOST_BYTES:
        raise _Absent(f"an ONNX file holds 2 GiB, and the weights are {weights.stat().st_size:,} bytes")
    tensors = {name: tensor.float().cpu() for name, tensor in setup.writer.read(weights).items()}
    network = architectures.load(setup.spec.network, tensors)[0].eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    inputs = setup.data.inputs(IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        _export(network, inputs, path, _metadata(weights))
    difference = _largest_difference(network, inputs, path)
    if not difference <= TOLERANCE:
        raise _Absent(
            f"onnxruntime's outputs differ from the network's by {difference:.2g} of max(1, |logit|) on {len(inputs)} held-out "
            f"images, and {TOLERANCE:g} is the most"
        )
    return difference, len(inputs)


def _export(network: nn.Module, inputs: Tensor, path: Path, metadata: dict[str, str]) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    # Two images: a batch of one would be taken for a constant. One held-out image is given twice.
    example = torch.cat([inputs[:2], inputs[:1]])[:2].clone()
    program = torch.onnx.export(
        network, (example,), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    assert program is not None
    # The exporter writes down where in this machine's files each operation came from.
    ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    answers = (
        "which times std plus mean of wbar.targets is the target" if "wbar.targets" in metadata else "before softmax"
    )
    if "wbar.attributes" in metadata:
        answers += " over the columns of each attribute in wbar.attributes"
    program.model.doc_string = (
        f"{INPUT}: (batch, channels, height, width) float32, (pixel - mean) / std of pixels in [0, 1] with the mean and std of "
        f"wbar.normalize; {OUTPUT}: one column for each name of wbar.classes, {answers}"
    )
    program.save(path, external_data=False)


def _largest_difference(network: nn.Module, inputs: Tensor, path: Path) -> float:
    """Return the largest |a − b| / max(1, |b|) of the file's logits a and the network's b; NaN counts as infinite."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for part in even_slices(len(inputs), BATCH):
        (found,) = session.run([OUTPUT], {INPUT: inputs[part].numpy()})
        with torch.inference_mode():
            expected = network(inputs[part]).numpy()
        if found.shape != expected.shape:
            raise _Absent(f"onnxruntime's outputs are {found.shape}, and the network's {expected.shape}")
        differences = np.abs(found - expected) / np.maximum(1.0, np.abs(expected))
        largest = max(largest, float(np.nan_to_num(differences, nan=np.inf).max()))
    return largest


def _metadata(weights: Path) -> dict[str, str]:
    """Return the metadata of a weights file, which an ONNX file has room for as it is."""
    with safe_open(weights, framework="pt") as file:
        found: dict[str, Any] = file.metadata() or {}
    return {name: str(value) for name, value in found.items()}


def _why(error: BaseException) -> str:
    """Return the first line of what an error was caused by, first of all: the exporter wraps it in advice."""
    if not isinstance(error, _Absent):
        while error.__cause__ is not None:
            error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 400 else f"{line[:397]}..."
