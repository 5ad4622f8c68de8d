"""Weights in, numbers out: BatchNorm statistics recomputed for them, and how well they do on a split of the images."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wbar.errors import Diverged
from wbar.jobs import StepPhase
from wbar.scores import Score
from wbar_averaging import has_batch_norm, recompute_batch_norm
from wbar_training.averages.average import Mean
from wbar_training.averages.choice import SELECTION_BATCH_NORM_IMAGES
from wbar_training.data.examples import Examples, Request
from wbar_training.distributed.ranks import Ranks
from wbar_training.draws import key, permutation
from wbar_training.evaluate import HeldOutOutputs, Outputs, even_slices, predict
from wbar_training.job_data import JobData
from wbar_training.known_statistics import KnownStatistics
from wbar_training.plan import Plan

BATCH_NORM_IMAGES = 2048

Tick = Callable[
    [StepPhase, int], None
]  # called with the phase and the number of images that have been through the network


@dataclass(frozen=True)
class Scores:
    """The scores of one network on everything that is held out: the report split, and the evaluation sets by name."""

    report: Score
    sets: dict[str, Score]


@dataclass(frozen=True)
class StartEvaluation:
    """The start on the held-out images.

    as_it_came: its scores with the uploaded BatchNorm statistics.
    recomputed: its scores with recomputed ones.
    outputs, recomputed_outputs: likewise.
    """

    as_it_came: Scores
    recomputed: Scores
    outputs: HeldOutOutputs
    recomputed_outputs: HeldOutOutputs

    @property
    def selection_loss(self) -> float:
        """The lower loss on the selection split, in nats; statistics that lag behind the weights are not the weights' fault."""
        splits = (self.outputs.selection, self.recomputed_outputs.selection)
        return min(one.losses.mean().item() for one in splits if one is not None)


class Evaluator:
    """Evaluates weights in a network of its own, or in the one that holds them.

    network: copied for its own.
    file_dtype: the dtype of a tensor in the file, by its name: weights are evaluated as they are delivered.
    tick: called after every batch; may raise to end the attempt.
    """

    def __init__(
        self,
        plan: Plan,
        data: JobData,
        network: nn.Module,
        file_dtype: Callable[[str], torch.dtype | None],
        tick: Tick,
    ) -> None:
        self.plan, self.data, self.task, self.network = plan, data, data.task, copy.deepcopy(network)
        self.tick, self._file_dtype = tick, file_dtype
        # For error messages: which weights are evaluated, and what to do about them.
        self.where, self.advice = "of the start", "check the checkpoint and recipe.normalize"
        has_statistics = plan.recomputes_batch_norm and has_batch_norm(network)
        # Images of one BatchNorm recompute; 0 where nothing is recomputed.
        self.recomputed_images = min(BATCH_NORM_IMAGES, len(data.train)) if has_statistics else 0
        self.known = KnownStatistics()

    # Evaluating what a network holds.

    def predict(self, model: nn.Module, split: Examples | None = None) -> Outputs:
        """Return outputs on a split, by default the report split, in eval mode. Raises Diverged if a loss is not finite."""
        return self._checked(self.outputs(model, self.data.report if split is None else split))

    def predict_held_out(self, model: nn.Module) -> HeldOutOutputs:
        """Return outputs on all that is held out, in eval mode. Raises Diverged if a loss is not finite."""
        data = self.data
        report, sets = self.predict(model), {name: self.predict(model, split) for name, split in data.sets.items()}
        if data.select_on is not None:
            return HeldOutOutputs(report, sets[data.select_on], sets)
        return HeldOutOutputs(report, None if data.selection is None else self.predict(model, data.selection), sets)

    def outputs(self, model: nn.Module, split: Examples) -> Outputs:
        """Return the same for any losses, finite or not."""
        return predict(
            model,
            split.parts(),
            lambda part, _: split.batch(part, self.data.prepare),
            self.task.answered,
            self.plan.autocast,
            lambda images: self.tick("evaluate", images),
        )

    def score(self, outputs: Outputs, split: Examples | None = None) -> Score:
        """Return the score of outputs on a split, by default the report split."""
        labels = (self.data.report if split is None else split).labels
        return self.task.score(outputs.answers, labels, outputs.losses)

    def calibrated_score(self, outputs: HeldOutOutputs) -> Score:
        """Return the score on the report split, with the temperature that the selection split gives."""
        report, selection = outputs.report, outputs.selection
        return self.calibrated(self.score(report), report.answers, None if selection is None else selection.answers)

    def scores(self, outputs: HeldOutOutputs) -> Scores:
        """Return the scores on all that is held out, with the temperature that the selection split gives."""
        answers = {name: one.answers for name, one in outputs.sets.items()}
        losses = {name: one.losses for name, one in outputs.sets.items()}
        selection = None if outputs.selection is None else outputs.selection.answers
        return Scores(self.calibrated_score(outputs), self.on_sets(answers, selection, losses))

    def on_sets(
        self, answers: Mapping[str, Tensor], selection: Tensor | None, losses: Mapping[str, Tensor] | None = None
    ) -> dict[str, Score]:
        """Return the scores on the evaluation sets.

        answers: by set, (images, …). losses: by set, (images,); they follow from the answers where they are not given.
        selection: the answers on the selection split, which the temperature is fitted on; None: there is none.
        """
        found = {}
        for name, outputs in answers.items():
            labels = self.data.sets[name].labels
            found[name] = self.task.score(outputs, labels, losses[name] if losses else None)
            if selection is not None and self.data.selection is not None:
                fitted_on = (selection, self.data.selection.labels)
                found[name] = self.task.calibrated(found[name], outputs, labels, fitted_on)
        return found

    def calibrated(self, plain: Score, report: Tensor, selection: Tensor | None) -> Score:
        """Return a score with its temperature. report, selection: the answers on the splits, (images, …)."""
        fitted_on = None
        if selection is not None:
            assert self.data.selection is not None
            fitted_on = (selection, self.data.selection.labels)
        return self.task.calibrated(plain, report, self.data.report.labels, fitted_on)

    def train_score(self, model: nn.Module, images: int = BATCH_NORM_IMAGES, augmented: bool = True) -> Score:
        """Return the score on the training images that BatchNorm is recomputed from, in eval mode.

        images: how many, at most.
        augmented: as they are trained on; else as they are.

        Raises Diverged if a loss is not finite.
        """
        drawn = permutation(len(self.data.train), self.plan.seed, "batchnorm")[:images]
        labels = self.data.train.labels[drawn]
        if not augmented:
            split = self.data.train.select(drawn)
            return self.score(self.predict(model, split), split)
        outputs = predict(
            model,
            self.data.feed.parts(len(drawn)),
            lambda part, index: self.data.feed.batch(Request(drawn[part], "train-score", index)),
            self.task.answered,
            self.plan.autocast,
            lambda seen: self.tick("evaluate", seen),
        )
        self._checked(outputs)
        return self.task.score(outputs.answers, labels, outputs.losses)

    def settled_train_score(self, model: nn.Module, images: int = BATCH_NORM_IMAGES, augmented: bool = True) -> Score:
        """Return `train_score` with recomputed BatchNorm statistics, whatever the recipe makes of them.

        At a high rate the tracked statistics lag behind and say little about the weights. The start's stay, if frozen.
        """
        self._settle(model, images)
        return self.train_score(self.network, images, augmented)

    def settled_loss(self, model: nn.Module, split: Examples) -> float:
        """Return the mean loss on a split with recomputed BatchNorm statistics, as `settled_train_score` has them; in nats."""
        self._settle(model, BATCH_NORM_IMAGES)
        return self.predict(self.network, split).losses.mean().item()

    def _settle(self, model: nn.Module, images: int) -> None:
        self.network.load_state_dict(model.state_dict())
        self._round_as_file(self.network)
        if self.plan.batch_norm != "frozen" and has_batch_norm(self.network):
            self._recompute(self.network, images, self.plan.batch_norm == "consistent")
            self._round_as_file(self.network)

    def evaluate_start(self, model: nn.Module) -> StartEvaluation:
        """Evaluate the start, which `model` must hold, as it came and with recomputed BatchNorm statistics."""
        outputs = again = self.predict_held_out(model)
        plain = recomputed = self.scores(outputs)
        if self.recomputed_images:
            self.network.load_state_dict(model.state_dict())
            self.recompute(self.network)
            again = self.predict_held_out(self.network)
            recomputed = self.scores(again)
        return StartEvaluation(plain, recomputed, outputs, again)

    # Evaluating a mean, in the evaluator's own network.

    def hold(self, mean: Mean, recompute: bool = True, images: int = BATCH_NORM_IMAGES, once: bool = False) -> None:
        """Put a mean into `network` as its file will hold it.

        recompute: whether BatchNorm statistics are recomputed, from at most `images` training images; else they are the
            mean's.
        once: see `recompute`.
        """
        mean.copy_to(self.network)
        if recompute:
            self.recompute_for_file(self.network, images, once)
        else:
            self._round_as_file(self.network)

    def predict_mean(self, mean: Mean, split: Examples | None = None) -> Outputs:
        """Return a mean's outputs as its file will give them; `network` holds it afterwards."""
        self.hold(mean)
        return self.predict(self.network, split)

    def selection_losses(self, mean: Mean) -> Tensor:
        """Return a mean's losses on the selection split, (N,) float64; BatchNorm is recomputed from fewer images."""
        assert self.data.selection is not None
        self.hold(mean, images=SELECTION_BATCH_NORM_IMAGES)
        return self.predict(self.network, self.data.selection).losses

    # BatchNorm.

    def recompute_for_file(self, model: nn.Module, images: int = BATCH_NORM_IMAGES, once: bool = False) -> None:
        """Recompute BatchNorm statistics for the weights as rounded in the file, and round the statistics alike."""
        self._round_as_file(model)
        self.recompute(model, images, once)
        self._round_as_file(model)

    def recompute(self, model: nn.Module, images: int = BATCH_NORM_IMAGES, once: bool = False) -> None:
        """Recompute BatchNorm statistics over augmented training images, which depend on the seed alone.

        images: how many, at most; with 0 nothing is recomputed.
        once: in one pass over them, also where the recipe asks for statistics in agreement.

        Raises Diverged if they cannot be computed.
        """
        if self.plan.recomputes_batch_norm and images:
            self._recompute(model, images, self.plan.batch_norm == "consistent" and not once)

    def _recompute(self, model: nn.Module, images: int, consistent: bool) -> None:
        def forward(module: nn.Module, chunk: tuple[int, Tensor]) -> None:
            index, images_of_batch = chunk
            inputs = self.data.feed.batch(Request(images_of_batch, "batchnorm-augment", index)).inputs
            torch.manual_seed(key(self.plan.seed, "batchnorm-forward", index))  # for the draws of the network itself
            autocast = self.plan.autocast
            with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None):
                self.task.forward(module, inputs)
            self.tick("batchnorm", len(images_of_batch))

        drawn = permutation(len(self.data.train), self.plan.seed, "batchnorm")[:images]
        ranks, known_by = Ranks.here(), (len(drawn), consistent)
        # Of fewer images none come again; and ranks pool their shares, so that all of them would have to know.
        remembers = images == BATCH_NORM_IMAGES and ranks.size == 1
        if remembers and self.known.restore(model, known_by):
            self.tick("batchnorm", len(drawn))
            return
        # Every rank has its share of the batches; their moments are pooled.
        most_at_once = min(self.task.batch_norm_batch(self.plan.image_size), -(-len(drawn) // ranks.size))
        slices = list(enumerate(even_slices(len(drawn), most_at_once)))
        own = [(index, drawn[part]) for index, part in slices[ranks.share(len(slices))]]
        try:
            recompute_batch_norm(
                model,
                own,
                forward,
                consistent=consistent,
            )
        except ValueError as error:
            raise Diverged(f"BatchNorm statistics could not be computed {self.where}: {error}") from error
        if remembers:
            self.known.keep(model, known_by)
        ranks.settle(len(drawn), sum(len(chunk) for _, chunk in own), lambda images: self.tick("batchnorm", images))

    def _round_as_file(self, model: nn.Module) -> None:
        for name, tensor in model.state_dict().items():
            dtype = self._file_dtype(name)
            if dtype is not None and dtype != tensor.dtype and tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))

    def _checked(self, outputs: Outputs) -> Outputs:
        if bool(torch.isfinite(outputs.losses).all()):
            return outputs
        raise Diverged(f"the loss {self.where} is not finite: {self.advice}")
