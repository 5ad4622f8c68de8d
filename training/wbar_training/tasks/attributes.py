"""Several attributes of every image, each with one of its own categories: a softmax over the outputs of each attribute.

loss     Σ_images mean_a (−Σ_k w_k·q_k·log p_k) / Σ_images mean_a w_y,  over the attributes a that are known of the image,
         k over a's categories, q = (1 − ε)·one-hot + ε/C_a
score    accuracy: the mean over attributes of right answers / images, over the images that the attribute is known of: sums
         of whole numbers, whatever they are cut into; loss: the mean over images of the mean over their known attributes
         of −log p; calibration error: over all known answers

What is not known counts nowhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wbar.attributes import outputs_of
from wbar.method import SelectBy
from wbar.recipe import Recipe
from wbar.scores import AttributeScore, Score
from wbar.spec import Network
from wbar_training.data.examples import Examples
from wbar_training.data.packed import Packed
from wbar_training.evaluate import Outputs, calibration_error
from wbar_training.losses import Loss, balanced_weights
from wbar_training.tasks.classification import ImageTask

NEVER = -1e30  # a logit whose exponential is 0, and that times 0 is 0, as −∞ times 0 is not


@dataclass(frozen=True)
class Groups:
    """Which outputs belong to which attribute, as an index that lays values of outputs out by attribute.

    outputs: of each attribute, by its name.
    index: (attributes, most) int64, the outputs of each attribute; one beyond the last output where it has fewer.
    place: (outputs,) int64, where each output stands in the flattened index.
    sizes: (attributes, 1) float32, how many categories each attribute has.
    """

    outputs: dict[str, list[int]]
    index: Tensor
    place: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, names: Sequence[str]) -> "Groups":
        """Return the groups of named outputs."""
        outputs = outputs_of(names)
        most = max(map(len, outputs.values()))
        index = torch.tensor([own + [len(names)] * (most - len(own)) for own in outputs.values()])
        sizes = torch.tensor([[float(len(own))] for own in outputs.values()])
        return cls(outputs, index, index.flatten().argsort(stable=True)[: len(names)], sizes)

    def to(self, device: torch.device) -> "Groups":
        """Return the same on a device."""
        return Groups(self.outputs, self.index.to(device), self.place.to(device), self.sizes.to(device))

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return values of outputs, (N, outputs), by attribute, (N, attributes, most). fill: where there is no category."""
        found = F.pad(values, (0, 1), value=fill).index_select(1, self.index.flatten())
        return found.reshape(-1, *self.index.shape)

    def gathered(self, values: Tensor) -> Tensor:
        """Return values by attribute, (N, attributes, most), as values of outputs, (N, outputs)."""
        return values.flatten(1).index_select(1, self.place)

    def logs(self, logits: Tensor) -> Tensor:
        """Return the logarithms of each attribute's softmax, (N, attributes, most). logits: (N, outputs)."""
        return self.spread(logits, NEVER).log_softmax(dim=2)


def mean_of_known(cells: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over the attributes that are known of each image, (N,).

    cells: (N, attributes), 0 where it is not known.
    labels: (N, outputs), with a 1 for each attribute that is known.
    """
    return cells.sum(dim=1) / labels.sum(dim=1).clamp_min(1).to(cells.dtype)


class AttributesLoss(Loss):
    """Cross-entropies of each attribute's softmax. labels: (B, outputs) of 0 and 1, see `Split`."""

    def __init__(self, recipe: Recipe, groups: Groups, counts: Tensor, device: torch.device) -> None:
        super().__init__(recipe, len(counts), counts, device)
        self.groups = groups.to(device)
        if recipe.class_weights == "balanced":  # among the categories of each attribute
            weights = torch.zeros(len(counts))
            for own in groups.outputs.values():
                weights[own] = balanced_weights(len(own), counts[own])
            self.weights = weights.to(device)

    def _norm(self, labels: Tensor) -> float | Tensor:
        if self.weights is None:
            return float(len(labels))
        return mean_of_known(labels * self.weights, labels).double().sum()

    def _hard(self, logits: Tensor, labels: Tensor) -> Tensor:
        logs, y = self.groups.logs(logits), self.groups.spread(labels.to(logits.dtype))
        if self.smoothing:
            # Spread evenly over the categories of an attribute, where it is known.
            evenly = self.groups.spread(torch.ones_like(logits)) / self.groups.sizes
            y = (1 - self.smoothing) * y + self.smoothing * evenly * y.sum(dim=2, keepdim=True)
        if self.weights is not None:
            y = y * self.groups.spread(self.weights[None])
        return mean_of_known(-(y * logs).sum(dim=2), labels)

    def _right(self, logits: Tensor, labels: Tensor) -> Tensor:
        found, y = self.groups.logs(logits.float()).argmax(dim=2), self.groups.spread(labels.float())
        return mean_of_known((found == y.argmax(dim=2)) * y.sum(dim=2), labels)

    def _divergence(self, scaled: Tensor, soft: Tensor) -> Tensor:
        """Return the mean over all attributes: the teacher has an answer where the labels have none."""
        divergences = F.kl_div(self.groups.logs(scaled), self.groups.spread(soft), reduction="none")
        return divergences.sum(dim=2).mean(dim=1)


class Attributes(ImageTask):
    """Several attributes of every image. Answers: softmax outputs of each attribute, (N, outputs) float64.

    Labels: (N, outputs) of 0 and 1, at most one 1 for each attribute.
    """

    name = "attributes"
    warns_near_chance = True

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        super().__init__(network, names)
        self.groups = Groups.of(names)

    def loss(self, recipe: Recipe, train: Examples, packed: Packed, device: torch.device) -> AttributesLoss:  # noqa: ARG002
        return AttributesLoss(recipe, self.groups, train.labels.sum(dim=0), device)

    def softened(self, logits: Tensor) -> Tensor:
        groups = self.groups.to(logits.device)
        return groups.gathered(groups.logs(logits).exp())

    def outputs(self, outputs: Tensor, labels: Tensor) -> Outputs:
        logs, labels = self.groups.logs(outputs.double().cpu()), labels.cpu()
        losses = mean_of_known(-(self.groups.spread(labels.double()) * logs).sum(dim=2), labels)
        return Outputs(self.groups.gathered(logs.exp()), losses)

    def distributions(self, probabilities: Tensor) -> Tensor:
        return self.groups.spread(probabilities)

    def most_probable(self, probabilities: Tensor, distribution: int) -> int:
        """Return the most probable category of the attribute."""
        own = list(self.groups.outputs.values())[distribution]
        return own[int(probabilities[own].argmax())]

    def score(self, answers: Tensor, labels: Tensor, losses: Tensor | None = None) -> Score:
        scores, confidences, rights = dict[str, AttributeScore](), list[Tensor](), list[Tensor]()
        surprise = torch.zeros(len(labels), dtype=torch.float64)
        # One after the other: side by side each would take as much memory as the largest.
        for name, p, y in self._by_attribute(answers, labels):
            known = y.any(dim=1).bool()
            p, y, images = p[known], y[known].argmax(dim=1), int(known.sum())
            confidence, found = p.max(dim=1)
            # As for classes: a probability that was rounded to 0 must not make the loss infinite.
            cells = -p.gather(1, y[:, None]).squeeze(1).clamp_min(1e-300).log()
            surprise[known] += cells
            confidences.append(confidence)
            rights.append(found == y)
            scores[name] = AttributeScore(
                images=images,
                accuracy=int(rights[-1].sum()) / images if images else None,
                loss=cells.sum().item() / images if images else None,
            )
        accuracies = [one.accuracy for one in scores.values() if one.accuracy is not None]
        return Score(
            accuracy=sum(accuracies) / len(accuracies),
            loss=(surprise / labels.sum(dim=1).clamp_min(1) if losses is None else losses).mean().item(),
            ece=calibration_error(torch.cat(confidences), torch.cat(rights)),
            attributes=scores,
        )

    def _by_attribute(self, answers: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield the name of each attribute, and its probabilities, float64, and labels, (N, its categories)."""
        for name, outputs in self.groups.outputs.items():
            yield name, answers[:, outputs].double(), labels[:, outputs]

    def calibrated(
        self, score: Score, answers: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None  # noqa: ARG002
    ) -> Score:  # fmt: skip
        """Return the score as it is: one temperature would not fit softmaxes of several attributes."""
        return score

    def per_image(self, outputs: Outputs, labels: Tensor, by: SelectBy) -> Tensor:
        """Return the mean over an image's known attributes of what `classification.per_image` says."""
        if by == "loss":
            return outputs.losses
        total = torch.zeros(len(labels), dtype=torch.float64)
        for _, p, y in self._by_attribute(outputs.answers, labels):
            wrong = p.argmax(dim=1) != y.argmax(dim=1) if by == "accuracy" else (p - y).square().sum(dim=1)
            total += wrong * y.any(dim=1).bool()
        return total / labels.sum(dim=1).clamp_min(1)

    def mean_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        groups = self.groups.to(outputs.device)
        return mean_of_known(
            -(groups.spread(labels.to(outputs.dtype)) * groups.logs(outputs)).sum(dim=2), labels
        ).mean()

    def chance(self, labels: Tensor) -> float:
        """Return the accuracy of always giving the commonest category of each attribute."""
        counts = [labels[:, outputs].sum(dim=0) for outputs in self.groups.outputs.values()]
        shares = [int(each.max()) / int(each.sum()) for each in counts if each.any()]
        return sum(shares) / len(shares)

    def strata(self, labels: Tensor) -> Tensor:
        """Return the number of each image's labels among all different ones, in their order."""
        numbers: Tensor = torch.unique(labels, dim=0, return_inverse=True)[1]
        return numbers
