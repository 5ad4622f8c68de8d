"""A step's two halves as CUDA graphs: hundreds of kernels launched at once instead of one by one.

    forward and backward      of a batch, which is copied to where the captured kernels read it
    pull, clip and optimizer  on the gradients where the captured backward pass leaves them

    the first steps           as they are: kernels are loaded and chosen, torch.compile compiles
    then, once                the same calls are captured, not run
    from then on              the captured kernels are launched together

The kernels, their order and their random draws (the seed is set before every replay) are those of a step that is not
captured, and so are the bits: a job may be captured in one attempt and not in the next. (Of the networks that were looked
at one kind differs, transformers' ViT, which is therefore not `reproducible`.) Without it a GPU waits for the host, which
needs longer to launch a small network's kernels than the GPU to run them.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from wbar_training.losses import Target

log = logging.getLogger("wbar.training")

WARM_UP = 3  # steps of a layout before it is captured
MOST_CAPTURES = 32  # of updates: a pull that changes at every step is not worth it
Backward = Callable[[Tensor, Target, int], Tensor]  # inputs, target, images of the whole batch -> (loss, right answers)
Layout = tuple[object, ...]


class GraphedBackward:
    """Calls `backward`, by a graph once its arguments have had one layout for some steps.

    backward: the forward and backward pass of a batch; adds to the parameters' gradients and returns a tensor.
    parameters: those that get gradients.
    """

    def __init__(self, backward: Backward, parameters: Sequence[Tensor]) -> None:
        self._backward, self._parameters = backward, parameters
        self.replayed = False  # whether the last call was a replay, so that the gradients are where they always are
        self._seen: dict[Layout, int] = {}
        self._graph: _Graph | None = None
        self._graphed: Layout | None = None
        self._refused = False

    def __call__(self, seed: int, inputs: Tensor, target: Target, images: int) -> Tensor:
        """Run the passes of a whole batch; the gradients are its own, whatever was there. The next call overwrites the result.

        seed: of the network's own random draws.
        images: in the batch.
        """
        layout = _layout(inputs, target, images)
        if self._graph is None and not self._refused and self._is_ready(layout):
            self._capture(layout, inputs, target, images)
        torch.manual_seed(seed)
        self.replayed = self._graph is not None and layout == self._graphed
        if self._graph is not None and self.replayed:
            return self._graph.replay(inputs, target)
        self._forget_gradients()
        return self._backward(inputs, target, images)

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def _is_ready(self, layout: Layout) -> bool:
        if not self._seen:
            torch.cuda.reset_peak_memory_stats()
        self._seen[layout] = self._seen.get(layout, 0) + 1
        return self._seen[layout] > WARM_UP

    def _capture(self, layout: Layout, inputs: Tensor, target: Target, images: int) -> None:
        """Capture the passes for this layout, or never: what cannot be captured runs as before, with the same result."""
        try:
            needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
            # What a graph works in stays its own: evaluations need as much again.
            if free < 2 * needed:
                raise RuntimeError(f"{free >> 20} MiB are free, and it would keep {needed >> 20} MiB")
            self._forget_gradients()
            self._graph = _Graph(self._backward, self._parameters, inputs, target, images)
            self._graphed = layout
        except RuntimeError as error:  # torch's errors of CUDA and of memory are RuntimeErrors
            self._refused = True
            _end_capture()
            log.info("the steps run without a CUDA graph (%s)", str(error).splitlines()[0])


class GraphedUpdate:
    """Changes the weights by the gradients that a replayed backward pass left: by a graph, after some steps that were alike.

    optimizer: whose step is part of it; its rate must be a tensor.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._alike: object = None
        self._seen, self._captures = 0, 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, update: Callable[[], None], alike: object) -> None:
        """Run `update`. alike: what it has as plain numbers; where they change, it is captured anew."""
        if alike != self._alike:
            self._alike, self._seen, self._graph = alike, 0, None
        self._seen += 1
        if self._graph is None and self._seen > WARM_UP and self._captures < MOST_CAPTURES:
            self._capture(update)
        if self._graph is None:
            update()
        else:
            self._graph.replay()

    def _capture(self, update: Callable[[], None]) -> None:
        self._captures += 1
        graph = torch.cuda.CUDAGraph()
        groups = [group for group in self._optimizer.param_groups if "capturable" in group]
        try:
            for group in groups:  # only meanwhile: outside of a capture torch warns of it
                group["capturable"] = True
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                update()
            self._graph = graph
        except RuntimeError as error:
            self._captures = MOST_CAPTURES
            _end_capture()
            log.info("the weights are updated without a CUDA graph (%s)", str(error).splitlines()[0])
        finally:
            for group in groups:
                group["capturable"] = False


class _Graph:
    """The captured passes of one layout, with the tensors that they read and write."""

    def __init__(
        self, backward: Backward, parameters: Sequence[Tensor], inputs: Tensor, target: Target, images: int
    ) -> None:
        self._parameters = parameters
        self._inputs = torch.empty_like(inputs)
        self._target = _held(target, inputs.device)
        self._numbers: dict[Tensor, float] = {}  # as they were last written
        self._load(inputs, target)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: a thread that pins a loader's images meanwhile does no harm.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result = backward(self._inputs, self._target, images)
        self._gradients = [parameter.grad for parameter in parameters]
        self._some = next(index for index, gradient in enumerate(self._gradients) if gradient is not None)

    def replay(self, inputs: Tensor, target: Target) -> Tensor:
        self._load(inputs, target)
        self._graph.replay()
        if self._parameters[self._some].grad is not self._gradients[self._some]:  # an ordinary step came between
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient
        return self._result

    def _load(self, inputs: Tensor, target: Target) -> None:
        self._inputs.copy_(inputs)
        for held, value in zip(_values(self._target), _values(target), strict=True):
            if isinstance(value, Tensor):
                held.copy_(value)
            elif value != self._numbers.get(held):
                held.fill_(value)
                self._numbers[held] = value


def _end_capture() -> None:
    """Let the device's generator draw again after a capture that failed.

    torch leaves it marked as being captured, so that the next dropout outside of a graph would be an error. A capture that
    succeeds ends the mark. The generator stays the same object, which other graphs draw from.
    """
    value = torch.zeros((), device="cuda")
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
        value.add_(1)  # an empty graph would be a warning


def _values(target: Target) -> list[Tensor]:
    """Return what varies from batch to batch. The numbers among them are tensors in a graph's own target."""
    values = [target.labels, target.other, target.soft, target.share, *target.norms]
    return [value for value in values if value is not None]  # type: ignore[misc]


def _held(target: Target, device: torch.device) -> Target:
    """Return a target of the same layout whose every value is a tensor that can be written to."""

    def scalar() -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=device)

    def like(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else torch.empty_like(tensor)

    return replace(
        target,
        labels=torch.empty_like(target.labels),
        other=like(target.other),
        soft=like(target.soft),
        share=scalar(),
        norms=(scalar(), scalar()),
    )


def _layout(inputs: Tensor, target: Target, images: int) -> Layout:
    return (
        inputs.shape, inputs.stride(), inputs.dtype, target.labels.shape, target.other is None, target.soft is None, images
    )  # fmt: skip
