"""The end of a job: the weights that are delivered, and their comparison with everything else, on the report split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from wbar.choices import Delivered, Selection
from wbar.method import AutoMethod, SelectBy
from wbar.results import CurvePoint
from wbar.scores import Score, mean_score
from wbar_averaging import Epoch
from wbar_training import decisions, exact_mean, probe_images
from wbar_training.analysis import attempted, bayesian_score, posterior
from wbar_training.averages.average import Average, Evaluated
from wbar_training.averages.choice import ChoiceLimits
from wbar_training.ending import Ending, Found
from wbar_training.ensemble import Member, ensemble_outputs
from wbar_training.evaluate import HeldOutOutputs, Outputs
from wbar_training.evaluator import Scores
from wbar_training.outcome import Outcome, WeightsFiles
from wbar_training.reporter import Reporter
from wbar_training.resume import Results
from wbar_training.selection_evaluator import SelectionEvaluator
from wbar_training.setup import Setup
from wbar_training.swag_file import write_swag
from wbar_training.tasks.task import Task


@dataclass(frozen=True)
class TrainedControl:
    """The control at its end: its scores, and its weights as a safetensors file."""

    scores: Scores
    weights: Path


def conclude(
    setup: Setup,
    reporter: Reporter,
    results: Results,
    average: Average,
    limits: ChoiceLimits,
    snapshots: Sequence[Path],
    epochs: Sequence[Epoch] | None,
    control: Callable[[], TrainedControl] | None,
) -> Outcome:
    """Finish the average, write the weights, and compare them.

    limits: what the choice of the average may cost.
    snapshots: the files of all of them, in order.
    epochs: the distances that the trajectory recorded, where flatness was asked for.
    control: trains and evaluates the control, where it was asked for; with probe images the evaluator's network holds it then.
    """
    spec, ending = setup.spec, Ending(setup, reporter, dict(results.probe), _start_losses(results))
    mean = ending.write(average.finish(SelectionEvaluator(setup, reporter, limits)))
    exact = None
    if spec.keeps_mean:
        exact = exact_mean.write(setup.writer.scratch / "mean.safetensors", mean.finished)
    swag, gaussian = _bayesian(setup, reporter, snapshots) if spec.swag else (None, None)
    flatness = None
    if epochs is not None:
        flatness = ending.flatness(mean, setup.read(snapshots[-1]), epochs)
    selection = _selection(setup, mean.finished.selection, mean.outputs, results, reporter)
    delivers_start = selection is not None and selection.delivered == "start"
    delivered = _write_start(setup, results) if delivers_start else None
    ensemble, beside = _ensemble(setup, results, snapshots), _control(reporter, control) if control else None
    if beside is not None:
        probe_images.record(setup, ending.kept, "control", setup.evaluator.network)
    compared = {
        "start": _scores(results, "start", results.start),
        "start_recomputed": _scores(results, "start_recomputed", results.start_recomputed),
        "last": _scores(results, "last", results.snapshots[-1]),
    }
    others = (("ensemble", ensemble), ("swag", swag), ("control", beside.scores if beside else None))
    compared |= {name: one for name, one in others if one is not None}
    found = Found(
        curve=[CurvePoint.of(n, score) for n, score in enumerate(results.averaged, start=1)],
        normalization=results.normalization,
        flatness=flatness,
        snapshots=None if ensemble else mean_score(results.snapshots),
        finished_early=results.stopped_at is not None,
        back_offs=results.back_offs,
        start_kind=results.start_kind if isinstance(spec.method, AutoMethod) else None,
        rate_probe=results.rate_probe,
        selection=selection,
        meetings=results.meetings if spec.meetings is not None else None,
    )
    return ending.outcome(
        mean,
        compared,
        ending.probed(mean, len(results.averaged)),
        found,
        delivered=delivered,
        swag=gaussian,
        exact_mean=exact,
        control=beside.weights if beside else None,
    )


def _bayesian(setup: Setup, reporter: Reporter, snapshots: Sequence[Path]) -> tuple[Scores | None, Path | None]:
    """Return the scores of SWAG, and its file, as far as they can be had."""
    points = [setup.read(path) for path in snapshots]
    found = attempted(reporter, "SWAG", partial(posterior, setup, points))
    if found is None:
        return None, None
    measured = attempted(reporter, "SWAG", partial(bayesian_score, setup, found, setup.spec.swag))
    scores, statistics = measured or (None, [])
    return scores, attempted(reporter, "SWAG's file", partial(write_swag, setup, found, statistics))


def _control(reporter: Reporter, control: Callable[[], TrainedControl]) -> TrainedControl | None:
    try:
        return attempted(reporter, "the control", control)
    except decisions.ControlLeftOut as reason:
        reporter.log("info", f"control: left out, since {reason}")
        return None


def _selection(
    setup: Setup, made: Selection | None, outputs: HeldOutOutputs, results: Results, reporter: Reporter
) -> Selection | None:
    """Return the selection with the choice of `guard` and its optimism.

    made: by the average. outputs: of w̄.
    """
    if outputs.selection is None:
        return made
    assert setup.data.selection is not None
    assert results.start_selection is not None
    labels, start = setup.data.selection.labels, results.start_selection
    # Of early stopping alone there is none: it looked at the selection split.
    selection = made or Selection(delivered="averaged")
    gain_there = (outputs.selection.losses - start.losses).mean().item()
    gain = (outputs.report.losses - _start_losses(results)).mean().item()
    loss = outputs.selection.losses.mean().item() if selection.loss is None else selection.loss
    selection = selection.model_copy(update={"loss": loss, "optimism": gain - gain_there})
    if not getattr(setup.spec.method, "guard", False):
        return selection
    by: SelectBy = getattr(setup.spec.method, "select_by", "loss")
    per_image = setup.data.task.per_image
    evaluated = [Evaluated(per_image(one, labels, by), one.losses.mean().item()) for one in (start, outputs.selection)]
    delivered: Delivered = decisions.guard(evaluated[0], evaluated[1], reporter)
    return selection.model_copy(update={"delivered": delivered})


def _write_start(setup: Setup, results: Results) -> WeightsFiles:
    recipe = setup.plan.recipe
    fresh = recipe.head == "reset" or bool(recipe.reset) or bool(recipe.head_epochs)
    # The uploaded tensors as they are: float64 does not survive the network, which is float32.
    tensors = setup.start() if fresh else setup.writer.start()
    assert results.start is not None
    return setup.writer.write_result(tensors, 0, results.start.temperature, "start")


def _ensemble(setup: Setup, results: Results, snapshots: Sequence[Path]) -> Scores | None:
    if not setup.data.task.has_ensemble:
        return None
    # The points of the curve are the ensemble's members: the start too, if it is included.
    members, selection = len(results.averaged), results.selection_probabilities
    if results.probabilities is None:
        started = [Member(1.0, setup.start)] if members > len(snapshots) else []
        own = [Member(1.0, partial(setup.read, path)) for path in snapshots]
        return setup.evaluator.scores(ensemble_outputs(setup, started + own))
    report = results.probabilities / members
    plain = setup.data.task.score(report, setup.data.report.labels)
    chosen_by = None if selection is None else selection / members
    sets = {name: total / members for name, total in results.set_probabilities.items()}
    return Scores(setup.evaluator.calibrated(plain, report, chosen_by), setup.evaluator.on_sets(sets, chosen_by))


def _scores(results: Results, name: str, report: Score | None) -> Scores:
    """Return what was found of a comparison."""
    assert report is not None
    return Scores(report, results.on_sets[name])


def _start_losses(results: Results) -> Tensor:
    assert results.start_losses is not None
    return results.start_losses


def add_to_ensemble(task: Task, results: Results, outputs: HeldOutOutputs) -> None:
    """Add a network's outputs to the ensemble's sums, where the task's ensembles have such sums."""
    if not task.averages_answers:
        return
    results.probabilities = _sum(results.probabilities, outputs.report)
    if outputs.selection is not None:
        results.selection_probabilities = _sum(results.selection_probabilities, outputs.selection)
    for name, one in outputs.sets.items():
        results.set_probabilities[name] = _sum(results.set_probabilities.get(name), one)


def _sum(total: Tensor | None, outputs: Outputs) -> Tensor:
    return outputs.answers.double() + (0 if total is None else total)
