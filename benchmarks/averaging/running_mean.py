"""What one update of a running mean costs beside the memory's own speed, how much it rounds, and what it allocates.

The limit is one in-place `lerp_` of the same bytes in two flat float32 tensors: it reads both and writes one, and nothing
that takes a mean can do less. What the peers do with buffers stands in the notes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from torchvision import models

from benchmarks.averaging import alternate as by_turns
from benchmarks.averaging.alternate import Turn, absent, alternate, part, threads, timed_row
from benchmarks.table import Findings, Row
from wbar_averaging import RunningMean

try:
    from timm.utils.model_ema import ModelEmaV3 as _ModelEma

    ModelEmaV3: Any = _ModelEma
except ImportError:
    ModelEmaV3 = None
try:
    from lightning.pytorch.callbacks import StochasticWeightAveraging
except ImportError:
    StochasticWeightAveraging = None

LIMIT = "one flat lerp_"
PLAIN, CHECKED, COMPENSATED = "RunningMean, neither", "RunningMean, checked", "RunningMean, compensated"
BOTH = "RunningMean, checked and compensated (as it comes)"
TORCH, TORCH_MULTI = "torch AveragedModel", "torch AveragedModel, multi_avg_fn"
TIMM, LIGHTNING = "timm ModelEmaV3 (exponential, with buffers)", "lightning StochasticWeightAveraging"

GOALS = {PLAIN: 1.10, CHECKED: 1.9, COMPENSATED: 1.8}
SETTLED = 10.0  # weight of the first point: the first updates of a compensated mean are not like the later ones
CHANGE = 1 + 1e-6  # of the source, before each update
ERROR_GOAL = 5e-8
Errors = list[tuple[float, float]]  # after each count of updates: of all tensors together, of the worst
SHAPES = ((100_000,), (250, 400), (100, 1000))


@dataclass(frozen=True)
class Case:
    """A network, and what an update of its mean may cost beside torch's two forms."""

    name: str
    build: Callable[..., nn.Module]
    rounds: int
    torch_goal: float
    multi_goal: float


CASES = (
    Case("ResNet-50", models.resnet50, 30, 0.15, 0.75),
    Case("ViT-B/16", models.vit_b_16, 15, 0.25, 0.95),
)


def measure(quick: bool) -> Findings:
    found = Findings()
    with threads(1):
        for case in CASES:
            found.rows += _speed(case, 5 if quick else case.rounds)
        found.rows += [_memory_row(case) for case in CASES]
        if by_turns.keep_freed_memory():
            found.rows += [_kept_row(case, 3 if quick else case.rounds) for case in CASES]
        counts = (10, 100) if quick else (10, 100, 1000)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            found.rows += _error_rows(dtype, counts)
    found.notes += [
        "running mean: one thread; every turn's source changes by a millionth between two updates; a compensated mean now "
        "and then does more, often while it is young (here its first point weighs ten): the upper end of its range",
        "torch's AveragedModel averages the parameters and copies the buffers, unless use_buffers=True; lightning's leaves "
        "them; RunningMean and the limit take the floating-point buffers too; timm's mean is exponential",
        "torch's time is mostly that of new memory: its temporaries go back to the system after every use, or do not, as "
        "glibc's allocator comes to decide in that process; the rows with the allocator told to keep them are its best case",
        "errors: ‖mean − mean64‖/‖mean64‖ against the float64 mean of the very same sources; rounding a float32 result "
        "once costs about 2.5e-8 by itself",
    ]
    return found


def _speed(case: Case, rounds: int) -> list[Row]:
    torch.manual_seed(0)
    times = alternate(_turns(case.build(weights=None).requires_grad_(False)), rounds)
    what = f"{case.name}, one update"
    rows = [timed_row(what, times, ours, LIMIT, GOALS.get(ours)) for ours in (PLAIN, CHECKED, COMPENSATED, BOTH)]
    for peer, goal in {TORCH: case.torch_goal, TORCH_MULTI: case.multi_goal, TIMM: None, LIGHTNING: None}.items():
        rows.append(timed_row(what, times, PLAIN, peer, goal) if peer in times else absent(f"{what}: {peer}"))
    return rows


def _kept_row(case: Case, rounds: int) -> Row:
    turns = _turns(case.build(weights=None).requires_grad_(False))
    times = alternate({name: turns[name] for name in (PLAIN, TORCH)}, rounds)
    return timed_row(f"{case.name}, one update, the allocator told to keep what is freed", times, PLAIN, TORCH)


def _turns(model: nn.Module) -> dict[str, Turn]:
    """Every way to update a mean of this model: all but the limit read the model itself."""
    flat = torch.cat([tensor.flatten() for tensor in model.state_dict().values() if tensor.is_floating_point()])
    flat_mean = flat.clone()
    weights = list(model.parameters())
    plain = RunningMean(model, compensated=False, check_finite=False)
    checked = RunningMean(model, compensated=False, check_finite=True)
    compensated = RunningMean(model, compensated=True, check_finite=False)
    both = RunningMean(model)
    for mean in (plain, checked, compensated, both):
        mean.update(model, weight=SETTLED)
    average, multi = AveragedModel(model), AveragedModel(model, multi_avg_fn=get_swa_multi_avg_fn())
    work: dict[str, Callable[[], object]] = {
        LIMIT: lambda: flat_mean.lerp_(flat, 0.1),
        PLAIN: lambda: plain.update(model),
        CHECKED: lambda: checked.update(model),
        COMPENSATED: lambda: compensated.update(model),
        BOTH: lambda: both.update(model),
        TORCH: lambda: average.update_parameters(model),
        TORCH_MULTI: lambda: multi.update_parameters(model),
    }
    if ModelEmaV3 is not None:
        ema = ModelEmaV3(model, decay=0.9)
        work[TIMM] = lambda: ema.update(model)
    if StochasticWeightAveraging is not None:
        callback = StochasticWeightAveraging
        swa, n = AveragedModel(model).module, torch.tensor(1)
        work[LIGHTNING] = lambda: callback.update_parameters(swa, model, n, callback.avg_fn)
    turns = {name: Turn(one, lambda: torch._foreach_mul_(list[Tensor](weights), CHANGE)) for name, one in work.items()}
    turns[LIMIT] = Turn(work[LIMIT], lambda: flat.mul_(CHANGE))
    return turns


def _memory_row(case: Case) -> Row:
    """What three updates take beyond what the three before them left behind."""
    model = case.build(weights=None).requires_grad_(False)
    whole = by_turns.nbytes(model.parameters())
    ours, theirs = RunningMean(model), AveragedModel(model)

    def three(update: Callable[[nn.Module], None]) -> by_turns.Memory:
        def updates() -> None:
            for _ in range(3):
                update(model)

        updates()
        return by_turns.memory(updates)

    taken, peer = three(ours.update), three(theirs.update_parameters)
    return Row(
        f"{case.name} ({whole / 2**20:.0f} MiB): temporaries of three updates, checked and compensated",
        taken.beside(whole),
        f"torch AveragedModel: {peer.beside(whole)}",
        f"{taken.peak / whole:.4f} of the model",
        "no temporary as large as the model",
        taken.peak < whole,
    )


def _error_rows(dtype: torch.dtype, counts: tuple[int, ...]) -> list[Row]:
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in SHAPES]
    model = nn.ParameterList([nn.Parameter(tensor.to(dtype), requires_grad=False) for tensor in start])
    ours, plain, theirs = RunningMean(model), RunningMean(model, compensated=False), AveragedModel(model)
    kind = str(dtype).removeprefix("torch.")
    torchs = f"{TORCH} in {kind}"
    means: dict[str, Callable[[], Iterable[Tensor]]] = {
        COMPENSATED: lambda: ours.mean(torch.float32).values(),
        PLAIN: lambda: plain.mean(torch.float32).values(),
        torchs: lambda: theirs.module.parameters(),
    }
    errors: dict[str, Errors] = {name: [] for name in means}
    total = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    for count in range(1, counts[-1] + 1):
        for weight, center, added in zip(model, start, total, strict=True):
            weight.copy_(center + 0.05 * torch.randn_like(center))
            added += weight.double()
        ours.update(model)
        plain.update(model)
        theirs.update_parameters(model)
        if count in counts:
            for name, mean in means.items():
                errors[name].append(_errors(mean(), [tensor / count for tensor in total]))
    what = f"error, {kind} sources, after {' / '.join(map(str, counts))} updates"
    return [_error_row(what, name, errors[name], torchs, errors[torchs]) for name in (COMPENSATED, PLAIN)]


def _error_row(what: str, name: str, ours: Errors, peer: str, theirs: Errors) -> Row:
    def shown(errors: Errors) -> str:
        together, worst = zip(*errors, strict=True)
        return f"{' / '.join(map(part, together))} (worst tensor {part(max(worst))})"

    last = part(ours[-1][0] / theirs[-1][0])
    goal = (f"≤ {part(ERROR_GOAL)}", max(map(max, ours)) <= ERROR_GOAL) if name == COMPENSATED else ("–", None)
    return Row(f"{what}: {name}", shown(ours), f"{peer}: {shown(theirs)}", last, *goal)


def _errors(mean: Iterable[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """‖mean − exact‖/‖exact‖ of all tensors together, and of the worst."""
    pairs = list(zip(mean, exact, strict=True))
    errors = [float((one - two).square().sum()) for one, two in pairs]
    wholes = [float(two.square().sum()) for _, two in pairs]
    worst = max(error / whole for error, whole in zip(errors, wholes, strict=True))
    return (sum(errors) / sum(wholes)) ** 0.5, worst**0.5
