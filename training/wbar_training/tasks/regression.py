"""Numbers of every image: one output for each target.

z = (y − mean) / std, of the training split; r = ẑ − z
loss     Σ_images mean_k h(r_k) / images,  h = r² (MSE), or r²/2 up to δ and δ(|r| − δ/2) beyond it (Huber 1964)
score    mean r² over images and targets; of each target, in its own units: MSE, RMSE, MAE, R² = 1 − Σ(ŷ − y)² / Σ(y − ȳ)²

Outputs are z, so that one rate and one pull serve ages and incomes; where `standardize` is false they are y.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import RegressionScore, Score, TargetScore
from wbar.spec import Network
from wbar_training.data.examples import Examples
from wbar_training.data.packed import Packed
from wbar_training.evaluate import Outputs
from wbar_training.losses import Loss, Target
from wbar_training.tasks.classification import ImageTask

DELTA = 1.0  # of the Huber loss, in standard deviations of the target, where nothing else is said


@dataclass(frozen=True)
class Scale:
    """The mean and standard deviation of each target in the training split, (outputs,) float64, in the outputs' order.

    standardize: whether the network's outputs are standardized; else they are in the targets' units.
    """

    mean: Tensor
    std: Tensor
    standardize: bool = True

    @classmethod
    def of(cls, packed: Packed, names: Sequence[str], standardize: bool) -> "Scale":
        """Return the scale that a packed file has. names: of the outputs, the file's targets in any order."""
        assert packed.target_mean is not None
        assert packed.target_std is not None
        order = [packed.classes.index(name) for name in names]
        mean, std = (torch.tensor(each, dtype=torch.float64)[order] for each in (packed.target_mean, packed.target_std))
        return cls(mean, std, standardize)

    def to(self, device: torch.device) -> "Scale":
        """Return the same on a device."""
        return Scale(self.mean.to(device), self.std.to(device), self.standardize)

    def residuals(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return ẑ − z, float64. outputs: of the network, (B, outputs); targets: in their units."""
        outputs = outputs.double()
        return (outputs if self.standardize else (outputs - self.mean) / self.std) - (targets - self.mean) / self.std

    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the network's outputs in the targets' units, float64."""
        outputs = outputs.double()
        return outputs * self.std + self.mean if self.standardize else outputs


class RegressionLoss(Loss):
    """Squared or Huber's losses of standardized residuals. labels: (B, outputs) float64, in the targets' units."""

    def __init__(self, recipe: Recipe, scale: Scale, device: torch.device) -> None:
        super().__init__(recipe, len(scale.mean), None, device)
        self.scale = scale.to(device)
        self.delta = (recipe.huber_delta or DELTA) if recipe.loss == "huber" else None

    def correct(self, outputs: Tensor, target: Target) -> Tensor:  # noqa: ARG002
        """Return NaN, which stands for none: a number is not right or wrong."""
        return torch.full((), torch.nan, device=outputs.device)

    def _norm(self, labels: Tensor) -> float | Tensor:
        return float(len(labels))

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        residuals = self.scale.residuals(logits, labels).float()
        if self.delta is None:
            return residuals.square().mean(dim=1)
        return F.huber_loss(residuals, torch.zeros_like(residuals), reduction="none", delta=self.delta).mean(dim=1)

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        raise NotImplementedError("a number is not right or wrong")

    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses distillation in regression")


class Regression(ImageTask):
    """Numbers of every image. Answers, labels: (N, outputs) float64, in the targets' units."""

    name = "regression"

    def __init__(self, network: Network, names: Sequence[str], scale: Scale) -> None:
        super().__init__(network, names)
        self.scale = scale

    def units(self) -> dict[str, list[float]]:
        """Return what leads from the network's outputs to the targets' units: outputs · std + mean, one number for each."""
        mean, std, count = self.scale.mean, self.scale.std, len(self.names)
        if not self.scale.standardize:
            return {"mean": [0.0] * count, "std": [1.0] * count}
        return {"mean": mean.tolist(), "std": std.tolist()}

    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> RegressionLoss:  # noqa: ARG002
        return RegressionLoss(recipe, self.scale, device)

    def softened(self, logits: Tensor) -> Tensor:
        raise NotImplementedError("the service refuses distillation in regression")

    def outputs(self, outputs: Tensor, labels: Tensor) -> Outputs:
        predictions = self.scale.predictions(outputs.cpu())
        return Outputs(predictions, self._losses(predictions, labels.cpu()))

    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
        losses = self._losses(answers, labels) if losses is None else losses
        return score_of_numbers(answers, labels, losses, self.names)

    def calibrated(
        self, score: Score, answers: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None  # noqa: ARG002
    ) -> Score:  # fmt: skip
        """Return the score as it is: a number has no confidence."""
        return score

    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:  # noqa: ARG002
        """Return the loss; the service refuses other choices."""
        return outputs.losses

    def mean_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.scale.to(outputs.device).residuals(outputs, labels).square().mean().float()

    def chance(self, labels: Tensor) -> float:  # noqa: ARG002
        """Return the R² of always giving the mean."""
        return 0.0

    def _losses(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return ((predictions.double() - targets) / self.scale.std).square().mean(dim=1)


def score_of_numbers(predictions: Tensor, targets: Tensor, losses: Tensor, names: Sequence[str]) -> Score:
    """Return the score of N images; `accuracy` is the mean R² of the targets that have one, 0 where none has.

    predictions, targets: (N, outputs), in the targets' units.
    losses: (N,) float64, standardized.
    """
    y = targets.double()
    errors = predictions.double() - y
    mse, mae = errors.square().mean(dim=0), errors.abs().mean(dim=0)
    constant = y.min(dim=0).values == y.max(dim=0).values
    r2 = 1 - mse / (y - y.mean(dim=0)).square().mean(dim=0)
    by_target = {
        name: TargetScore(
            mse=mse[k].item(),
            rmse=mse[k].sqrt().item(),
            mae=mae[k].item(),
            r2=None if bool(constant[k]) else r2[k].item(),
        )
        for k, name in enumerate(names)
    }
    known = [one.r2 for one in by_target.values() if one.r2 is not None]
    mean = sum(known) / len(known) if known else None
    return Score(
        accuracy=mean or 0.0,
        loss=losses.mean().item(),
        regression=RegressionScore(r2=mean, by_target=by_target),
    )
