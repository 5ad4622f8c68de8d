"""What SWAG's update costs beside the memory's own speed, what curvature costs beside a training step, and if both are right.

The limit of an update is the one of a running mean: one in-place `lerp_` of the same bytes in two flat float32 tensors. SWAG
keeps three tensors where a mean keeps one, so that it reads three and writes three where `lerp_` reads two and writes one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from benchmarks.averaging.alternate import Turn, alternate, part, threads, timed_row
from benchmarks.table import Findings, Row
from wbar_averaging.flatness import Trajectory, hessian_vector_product, sharpness, top_eigenvalue
from wbar_averaging.swag import SWAG

LIMIT = "one flat lerp_"
FULL, DIAGONAL, TRAJECTORY = "SWAG.update, rank 5 (full)", "SWAG.update, rank 0", "Trajectory.update"
SAMPLE = "SWAG.sample, rank 5"
STEP = "forward + backward"
PRODUCT, ITERATION = "one Hessian-vector product", "top_eigenvalue, 5 products (one graph)"
SPREAD = 1e-4  # of weights near 1: what snapshots of a low phase differ by


def measure(quick: bool) -> Findings:
    found = Findings()
    torch.manual_seed(0)
    with threads(1):
        found.rows += _collecting(3 if quick else 15)
        found.rows += _curvature(2 if quick else 8)
    found.rows += [_variance_row(), _covariance_row(200 if quick else 4000), _eigenvalue_row(), _sharpness_row()]
    found.notes += [
        "SWAG: ResNet-50, one thread; the update includes the check that the source is finite, and every turn's source changes "
        "by a millionth; the deviations fill their rank before the first turn",
        "curvature: ResNet-18 on 4 images of 64 × 64, eval mode; the product includes the copy that restores the model",
    ]
    return found


def _collecting(rounds: int) -> list[Row]:
    model = models.resnet50(weights=None).requires_grad_(False)
    weights = list(model.parameters())
    flat = torch.cat([tensor.flatten() for tensor in model.state_dict().values() if tensor.is_floating_point()])
    flat_mean = flat.clone()
    full, diagonal, trajectory = SWAG(model, rank=5), SWAG(model, rank=0), Trajectory(model)
    for _ in range(5):
        full.update(model)
    diagonal.update(model)
    work: dict[str, Callable[[], object]] = {
        LIMIT: lambda: flat_mean.lerp_(flat, 0.1),
        FULL: lambda: full.update(model),
        DIAGONAL: lambda: diagonal.update(model),
        TRAJECTORY: lambda: trajectory.update(model),
        SAMPLE: lambda: full.sample(0),
    }
    turns = {name: Turn(one, lambda: torch._foreach_mul_(weights, 1 + 1e-6)) for name, one in work.items()}
    turns[LIMIT] = Turn(work[LIMIT], lambda: flat.mul_(1 + 1e-6))
    times = alternate(turns, rounds)
    return [timed_row("ResNet-50", times, ours, LIMIT) for ours in (FULL, DIAGONAL, TRAJECTORY, SAMPLE)]


def _curvature(rounds: int) -> list[Row]:
    model = models.resnet18(weights=None, num_classes=10).eval()
    images, labels = torch.randn(4, 3, 64, 64), torch.arange(4)
    vector = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}

    def loss(module: nn.Module) -> Tensor:
        return F.cross_entropy(module(images), labels)

    turns: dict[str, Callable[[], object]] = {
        STEP: lambda: torch.autograd.grad(loss(model), list(model.parameters())),
        PRODUCT: lambda: hessian_vector_product(model, loss, vector),
        ITERATION: lambda: top_eigenvalue(model, loss, tolerance=1e-12, max_steps=5),
    }
    times = alternate({name: Turn(one) for name, one in turns.items()}, rounds)
    return [timed_row("ResNet-18", times, ours, STEP) for ours in (PRODUCT, ITERATION)]


def _variance_row() -> Row:
    """Weights near 1 that hardly vary: Welford's form beside the difference of two moments, both in float32."""
    points = [{"w": 1 + SPREAD * torch.randn(10_000)} for _ in range(50)]
    kept = torch.stack([point["w"] for point in points])
    exact = kept.double().var(dim=0, unbiased=False)
    swag = SWAG(points[0], rank=0)
    for point in points:
        swag.update(point)
    moments = kept.square().mean(dim=0) - kept.mean(dim=0).square()
    ours, theirs = (
        float(((found.double() - exact) / exact).abs().median()) for found in (swag.variance()["w"], moments)
    )
    return Row(
        f"variance of weights near 1 that vary by {SPREAD:g}, float32: median relative error",
        part(ours), f"E[w²] − E[w]²: {part(theirs)}", part(ours / theirs), "≤ 1e-2", ours <= 1e-2,
    )  # fmt: skip


def _covariance_row(count: int) -> Row:
    """Draws beside equation 1, computed in float64 from the points themselves."""
    points = [torch.randn(6, dtype=torch.float64) for _ in range(8)]
    swag = SWAG({"w": points[0]}, dtype=torch.float64)
    for point in points:
        swag.update({"w": point})
    kept = torch.stack(points)
    deviations = torch.stack([kept[i] - kept[: i + 1].mean(dim=0) for i in range(8)])
    expected = (kept.var(dim=0, unbiased=False).diag() + deviations.T @ deviations / 7) / 2
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cov(torch.stack([swag.sample(generator)["w"] for _ in range(count)]).T)
    off = float(torch.linalg.matrix_norm(drawn - expected) / torch.linalg.matrix_norm(expected))
    goal = 6 / count**0.5  # the noise of a covariance of so many draws in six dimensions
    return Row(
        f"covariance of {count} draws",
        "as equation 1",
        "float64 twin",
        f"off by {off:.3f}",
        f"≤ {goal:.2f}",
        off <= goal,
    )


class _Quadratic(nn.Module):
    """½ wᵀAw, of which everything is known."""

    def __init__(self, matrix: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.matrix, self.w = matrix, nn.Parameter(weights)


def _value(model: nn.Module) -> Tensor:
    return 0.5 * model.w @ model.matrix @ model.w  # type: ignore[operator]  # nn.Module types attributes as Tensor or Module


def _eigenvalue_row() -> Row:
    basis, _ = torch.linalg.qr(torch.randn(200, 200))
    spectrum = torch.linspace(-5, 8, 200)
    spectrum[-1] = 10.0
    model = _Quadratic(basis @ spectrum.diag() @ basis.T, torch.randn(200))
    found = top_eigenvalue(model, _value)
    off = abs(found.value / 10 - 1)
    said = f"{found.value:.5f}, residual {part(found.residual)}, {found.steps} products"
    return Row("top eigenvalue, float32, 200 dimensions", said, "10", f"off by {part(off)}", "≤ 1e-3", off <= 1e-3)


def _sharpness_row() -> Row:
    curvatures, weights = torch.rand(1000) * 10, torch.randn(1000) * 0.1
    corner = weights.abs() + 1e-3 * (weights.abs() + 1)
    low, high = (float(0.5 * (curvatures.double() * w.double().square()).sum()) for w in (weights, corner))
    exact = 100 * (high - low) / (1 + low)
    found = sharpness(_Quadratic(curvatures.diag(), weights), _value).percent
    off = abs(found / exact - 1)
    return Row(
        "sharpness of a quadratic, ε = 1e-3, float32",
        f"{found:.4f} %", f"its corner: {exact:.4f} %", f"off by {part(off)}", "≤ 1e-3", off <= 1e-3,
    )  # fmt: skip
