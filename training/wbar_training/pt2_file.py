"""The averaged weights as a `.pt2` archive of torch.export: network and weights in one file, loaded without a class of it.

It is the graph of the network in evaluation, with a free batch size, so that `torch.export.load(path).module()(images)` gives
the logits that the job's numbers are of. It is exported anew by the torch of the worker, and from the weights file that is
delivered: of an uploaded program nothing but its operations and names comes into it. What the weights file's metadata says is
in the archive's extra file `wbar.json`. Where the export fails, or the file gives other outputs, there is none, and the result
says why.
"""

import json
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from wbar.results import OfferedFormat
from wbar.spec import canonical
from wbar_averaging.quoting import reason
from wbar_training.evaluate import even_slices
from wbar_training.networks import architectures
from wbar_training.networks.programs import METADATA
from wbar_training.onnx_file import BATCH, IMAGES, TOLERANCE
from wbar_training.reporter import Reporter
from wbar_training.result_writer import weights_file
from wbar_training.setup import Setup

EXTRA = "wbar.json"
_NOTES = (
    "stack_trace",
    "nn_module_stack",
    "source_fn_stack",
    "torch_fn",
    "from_node",
)  # of this machine's source files


class _Differs(Exception):
    """Raised where the file does not give the network's outputs."""


def write_pt2(setup: Setup, reporter: Reporter, weights: Path, path: Path) -> OfferedFormat:
    """Make and check the archive of a weights file.

    weights: the safetensors file that is delivered.
    path: of the archive; there is no file where `reason` of the answer is set.
    """
    path.unlink(missing_ok=True)  # of an attempt that was killed here
    try:
        difference, images = _export_and_check(setup, weights, path)
    except Exception as error:  # an exporter: it may be almost any, and the weights are there
        path.unlink(missing_ok=True)
        why = str(error) if isinstance(error, _Differs) else f"{type(error).__name__}: {reason(error)}"
        reporter.log("warning", f"there is no pt2 file: {why}")
        return OfferedFormat(format="pt2", reason=why)
    reporter.log("info", f"pt2: the outputs differ by {difference:.2g} at most, on {images} held-out images")
    file = weights_file(path)
    return OfferedFormat(format="pt2", bytes=file.bytes, sha256=file.sha256, difference=difference, images=images)


def _export_and_check(setup: Setup, weights: Path, path: Path) -> tuple[float, int]:
    tensors = {name: tensor.float().cpu() for name, tensor in setup.writer.read(weights).items()}
    network = architectures.load(setup.spec.network, tensors)[0].eval().requires_grad_(False)
    inputs = setup.data.inputs(IMAGES)
    with safe_open(weights, framework="pt") as file:
        said = {name: value for name, value in (file.metadata() or {}).items() if name != METADATA}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about itself
        export(network, tuple(inputs.shape[1:]), path, said)
        loaded = torch.export.load(path).module()
    largest = 0.0
    for part in even_slices(len(inputs), BATCH):
        with torch.inference_mode():
            found, expected = loaded(inputs[part]), network(inputs[part])
        differences = (found - expected).abs() / expected.abs().clamp(min=1)
        largest = max(largest, float(differences.nan_to_num(nan=torch.inf).max()))
    if not largest <= TOLERANCE:
        raise _Differs(
            f"the archive's outputs differ from the network's by {largest:.2g} of max(1, |logit|) on {len(inputs)} held-out "
            f"images, and {TOLERANCE:g} is the most"
        )
    return largest, len(inputs)


def export(network: nn.Module, shape: tuple[int, ...], path: Path, said: dict[str, str]) -> None:
    """Write a network as an archive, with a free batch size; no image and no path of this machine is in it.

    network: in the mode that it is to have.
    shape: of one image.
    said: the metadata that the archive carries.
    """
    example: Tensor = torch.zeros(2, *shape)  # two: a batch of one would be taken for a constant
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for note in _NOTES:
            node.meta.pop(note, None)
    torch.export.save(program, path, extra_files={EXTRA: canonical(said)})


def said_in(path: Path) -> dict[str, str]:
    """Return the metadata that an archive of ours carries."""
    found = {EXTRA: ""}
    torch.export.load(path, extra_files=found)
    said: dict[str, str] = json.loads(found[EXTRA])
    return said
