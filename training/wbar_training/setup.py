"""The parts that every job works with: the plan, the images, the network on its device, the writer and the evaluator."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from wbar.errors import PrecisionUnsupported
from wbar.recipe import Precision
from wbar.spec import JobSpec
from wbar_training.batches import Batches
from wbar_training.evaluator import Evaluator, Tick
from wbar_training.job_data import JobData
from wbar_training.losses import Loss
from wbar_training.networks.fresh_layers import prepared
from wbar_training.plan import Plan
from wbar_training.result_writer import ResultWriter
from wbar_training.workspace import Workspace


@dataclass(frozen=True)
class Setup:
    """The parts of one job.

    model: holds w, the start's at first; other weights are evaluated in the evaluator's probe.
    head: the start's classifier, once it was trained by itself.
    """

    spec: JobSpec
    plan: Plan
    device: torch.device
    data: JobData
    writer: ResultWriter
    model: nn.Module
    evaluator: Evaluator
    head: dict[str, Tensor] = field(default_factory=dict)

    def start(self) -> dict[str, Tensor]:
        """Return the start as a whole state dict of the network: the checkpoint's tensors, fresh layers, its classifier."""
        network = prepared(self.spec.network, self.writer.start(), self.plan.recipe, self.plan.seed)
        return {name: tensor.to(self.device) for name, tensor in (network.state_dict() | self.head).items()}

    def read(self, path: Path, prefix: str | None = None) -> dict[str, Tensor]:
        """Return a weights file as a whole state dict of the network, on its device; see `ResultWriter.read`."""
        return {name: tensor.to(self.device) for name, tensor in self.writer.read(path, prefix).items()}

    def normalize_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Replace the plan's normalization, in the network's inputs and in the files."""
        self.data.prepare.normalize_by(mean, std)
        self.writer.normalize_by(mean, std)
        self.evaluator.known.forget()

    def loss(self) -> Loss:
        """Return the training loss."""
        return self.data.task.loss(self.plan.recipe, self.data.train, self.data.packed, self.device)

    def batches(self) -> Batches:
        """Return what makes the training batches."""
        return Batches(self.data.feed, self.data.task, self.plan)

    def train_mode(self) -> None:
        """Put the model in train mode; with `frozen`, BatchNorm keeps the statistics that it has."""
        self.model.train()
        if self.plan.batch_norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()


def set_up(spec: JobSpec, workspace: Workspace, tick: Tick, data: JobData | None = None) -> Setup:
    """Make the parts of a job.

    tick: called after every batch that is evaluated.
    data: of another setup of the same job.

    Raises PrecisionUnsupported for a precision that the device does not have, and the errors of loading the start.
    """
    plan, device = Plan.of(spec.recipe, spec.seed), torch.device(workspace.device)
    data = data or JobData(spec, workspace, plan, device)
    writer = ResultWriter(spec, workspace, plan, data.output_names, data.task)
    model = prepared(spec.network, writer.start(), plan.recipe, plan.seed)
    model = model.to(device).to(memory_format=torch.channels_last)
    if plan.recipe.sync_batch_norm:
        model = _synchronized(model, device)
    _choose_float32(plan.recipe.precision, device)
    return Setup(spec, plan, device, data, writer, model, Evaluator(plan, data, model, writer.dtype, tick))


def make_deterministic(spec: JobSpec, device: str, threads: int | None) -> None:
    """Set the thread count, which decides the bits on a CPU, and choose repeatable GPU kernels.

    threads: None leaves the count as it is.

    For networks that pool regions torch's mode stays off: in it, torchvision's RoI pooling is compiled by inductor instead of
    its own kernel, and that fails.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device.startswith("cuda"):
        # cuBLAS is deterministic only with it, and torch refuses to multiply without it; read at cuBLAS's first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        deterministic = not spec.network.architecture.pools_regions
        torch.use_deterministic_algorithms(deterministic, warn_only=not spec.reproducible)
        # Or every tensor that torch allocates would be filled first, for programs that read what they have not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def _synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    if device.type != "cuda":
        raise PrecisionUnsupported("recipe.sync_batch_norm is for GPUs, and this job runs on the CPU: leave it out")
    synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    return synchronized


def _choose_float32(precision: Precision, device: torch.device) -> None:
    """Let float32 operations use tf32 where the recipe says so, and nowhere else: torch's convolutions do by default."""
    wanted = precision == "tf32"
    if wanted and device.type != "cuda":
        raise PrecisionUnsupported(
            f'recipe.precision is "tf32", which GPUs have, and this job runs on {device.type}: choose float32 or bfloat16'
        )
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted
