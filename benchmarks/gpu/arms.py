"""The arms of the speed comparison, each a process: `python -m benchmarks.gpu.arms --arm bare --device cuda`.

    wbar            a TrainingJob as it comes: deterministic kernels, pull, meter, log points, heartbeats
    wbar_compiled   the same with recipe.compile
    bare            the eager loop that one would write by hand, with the same precision, augmentation and optimizer
    lightning       Lightning's Trainer with its StochasticWeightAveraging callback, data on the device
    graph           the bare step as one CUDA graph: batch, forward, backward, optimizer; cudnn.benchmark
    compiled        that, with the network compiled by inductor before it is captured

All have their images on the device, and channels_last.
"""

import argparse
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bare_loop import augment, groups
from benchmarks.gain.arms import Silent
from benchmarks.gpu.cases import CASES, MOMENTUM, Case, fresh, job_of, pixels
from benchmarks.gpu.gauge import Gauge, Talk
from wbar.jobs import Progress
from wbar.recipe import IMAGENET
from wbar_training.loop import TrainingJob
from wbar_training.messages import StopReason
from wbar_training.reporter import StopRequested

CAPTURE_AFTER = 11  # steps, as torch's documentation of CUDA graphs has it
IN_FLIGHT = 8  # steps of a graph that the host may be ahead: the device never waits, and a measurement ends in time


class Measured(Silent):
    """A reporter that asks the gauge at the heartbeats of training, which come after the job has waited for the device."""

    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge

    def heartbeat(self, progress: Progress) -> StopReason | None:
        if progress.phase not in ("high", "low"):
            return None
        return "cancel" if self.gauge.tick(progress.step) else None


def wbar(case: Case, gauge: Gauge, compiled: bool = False) -> None:
    with tempfile.TemporaryDirectory(prefix="wbar-speed-") as folder:
        spec, workspace = job_of(case, Path(folder), gauge.device.type, compile=compiled)
        try:
            TrainingJob(spec, workspace, Measured(gauge)).run()
        except StopRequested:
            return
    raise RuntimeError("the job ended before it was measured")


def wbar_compiled(case: Case, gauge: Gauge) -> None:
    wbar(case, gauge, compiled=True)


class Loop:
    """Network, images and optimizer on the device, and one step on them.

    captured: whether the step is going to be captured, so that the optimizer's state and rate are on the device.
    """

    def __init__(self, case: Case, device: torch.device, captured: bool = False) -> None:
        self.case, self.device = case, device
        images, labels = pixels(case)
        self.images, self.labels = images[: case.images].to(device), labels[: case.images].to(device)
        self.model = fresh(case).to(device)
        self.forward: Callable[[Tensor], Tensor] = self.model
        if case.precision == "tf32" and device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        self.mean = 255 * torch.tensor(IMAGENET.mean, device=device).view(1, -1, 1, 1)
        self.scale = 1 / (255 * torch.tensor(IMAGENET.std, device=device).view(1, -1, 1, 1))
        self.optimizer = optimizer_of(case, self.model, device, captured)

    def inputs(self, images: Tensor) -> Tensor:
        changed = augment(images, flip=True).float().sub_(self.mean).mul_(self.scale)
        return changed.contiguous(memory_format=torch.channels_last)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        bfloat16 = self.case.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            return F.cross_entropy(self.forward(inputs), labels)

    def step(self, chosen: Tensor) -> None:
        loss = self.loss(self.inputs(self.images[chosen]), self.labels[chosen])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def orders(self) -> Iterator[Tensor]:
        """The images of batch after batch, without an end."""
        while True:
            whole = torch.randperm(len(self.labels), device=self.device)
            yield from whole.split(self.case.batch)


def optimizer_of(
    case: Case, model: torch.nn.Module, device: torch.device, captured: bool = False
) -> torch.optim.Optimizer:
    parts = groups(model, case.weight_decay)
    lr: Any = torch.tensor(case.lr, device=device) if captured else case.lr
    if case.optimizer == "sgd":
        return torch.optim.SGD(parts, lr=lr, momentum=MOMENTUM, nesterov=True, fused=True)
    return torch.optim.AdamW(parts, lr=lr, fused=True, capturable=captured)


def bare(case: Case, gauge: Gauge) -> None:
    loop = Loop(case, gauge.device)
    for number, chosen in enumerate(loop.orders(), start=1):
        loop.step(chosen)
        if gauge.tick(number):
            return


def graph(case: Case, gauge: Gauge, compiled: bool = False) -> None:
    captured = gauge.device.type == "cuda"
    torch.backends.cudnn.benchmark = True
    loop = Loop(case, gauge.device, captured)
    if compiled:
        # On a processor only the code is tried, and inductor would take minutes.
        loop.forward = torch.compile(loop.model, backend="inductor" if captured else "eager")
    step = _captured(loop) if captured else loop.step
    flying: deque[torch.cuda.Event] = deque()
    for number, chosen in enumerate(loop.orders(), start=1):
        step(chosen)
        if captured:
            flying.append(torch.cuda.Event())
            flying[-1].record()
            if len(flying) > IN_FLIGHT:
                flying.popleft().synchronize()
        if gauge.tick(number):
            return


def compiled(case: Case, gauge: Gauge) -> None:
    graph(case, gauge, compiled=True)


def _captured(loop: Loop) -> Callable[[Tensor], None]:
    """The whole step as a CUDA graph, which reads the images to take from one tensor."""
    chosen = torch.arange(loop.case.batch, device=loop.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(CAPTURE_AFTER):
            loop.step(chosen)
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    recorded = torch.cuda.CUDAGraph()
    # Without the old gradients: the backward pass then makes them in the graph's own memory.
    loop.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(recorded):
        loop.step(chosen)

    def step(now: Tensor) -> None:
        chosen.copy_(now)
        recorded.replay()

    return step


def lightning(case: Case, gauge: Gauge) -> None:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    loop = Loop(case, gauge.device)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = loop.model

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return F.cross_entropy(self.model(loop.inputs(batch[0])), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(case, self.model, gauge.device)

    class Batches:
        """What a DataLoader would give, had it the images on the device."""

        def __len__(self) -> int:
            return case.images // case.batch

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for chosen in torch.randperm(case.images, device=gauge.device).split(case.batch):
                yield loop.images[chosen], loop.labels[chosen]

    class Asked(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if gauge.tick(trainer.global_step):
                trainer.should_stop = True

    trainer = Trainer(
        max_epochs=1_000_000,
        accelerator="gpu" if gauge.device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if case.precision == "bfloat16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Asked(), StochasticWeightAveraging(swa_lrs=case.lr, swa_epoch_start=1)],
    )
    trainer.fit(Module(), Batches())


ARMS: dict[str, Callable[[Case, Gauge], None]] = {
    "wbar": wbar,
    "bare": bare,
    "graph": graph,
    "lightning": lightning,
    "compiled": compiled,
    "wbar_compiled": wbar_compiled,
}


def serve(arm: str, device: torch.device, quick: bool) -> None:
    """Answer turns until there are no more."""
    talk = Talk()
    turn = talk.next()
    failed: dict[str, str] = {}
    while turn is not None:
        if turn.case in failed:
            talk.answer(error=failed[turn.case])
            turn = talk.next()
            continue
        case = CASES[turn.case].quick() if quick else CASES[turn.case]
        gauge = Gauge(talk, turn, case.batch, device, quick)
        try:
            ARMS[arm](case, gauge)
            turn = gauge.turn
        except Exception as error:
            failed[turn.case] = f"{type(error).__name__}: {error}"[:600]
            talk.answer(error=failed[turn.case])
            turn = talk.next()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.arms", description=__doc__)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    serve(options.arm, torch.device(options.device), options.quick)


if __name__ == "__main__":
    main()
