"""The end of a job: the weights that are delivered, and their comparison with everything else, on the report split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from wbar.choices import Delivered, Selection
from wbar.method import AutoMethod, SelectBy
from wbar.results import Comparisons, CurvePoint, JobResult
from wbar.scores import Score, mean_score
from wbar_averaging import Epoch
from wbar_training import decisions, exact_mean, probe_images
from wbar_training.analysis import attempted, bayesian_score, measure_flatness, posterior
from wbar_training.answers import draw_answers
from wbar_training.averages.average import Average, Evaluated
from wbar_training.averages.choice import ChoiceLimits
from wbar_training.ensemble import Member, ensemble_outputs
from wbar_training.evaluate import HeldOutOutputs, Outputs, verdict
from wbar_training.evaluation_sets import evaluated_sets, read
from wbar_training.evaluator import Scores
from wbar_training.further_formats import make_further_files
from wbar_training.interpolation import interpolated
from wbar_training.outcome import Outcome, WeightsFiles
from wbar_training.reporter import Reporter
from wbar_training.result_writer import weights_file
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
    evaluator, spec = setup.evaluator, setup.spec
    finished, line = average.finish(SelectionEvaluator(setup, reporter, limits)), None
    by: SelectBy = getattr(spec.method, "select_by", "loss")
    if spec.method.interpolate is not None:
        finished, line = interpolated(setup, reporter, spec.method.interpolate, finished, by)
    exact = None
    if spec.keeps_mean:
        exact = exact_mean.write(setup.writer.scratch / "mean.safetensors", finished)
    evaluator.hold(finished.mean, recompute=not finished.own_statistics)
    outputs = evaluator.predict_held_out(evaluator.probe)
    averaged, kept = evaluator.scores(outputs), dict(results.probe)
    probe_images.record(setup, kept, "averaged", evaluator.probe)
    of_mean = setup.writer.write_result(evaluator.probe.state_dict(), finished.points, averaged.report.temperature)
    swag = flatness = gaussian = None
    if spec.swag:
        points = [setup.read(path) for path in snapshots]
        found = attempted(reporter, "SWAG", partial(posterior, setup, points))
        if found is not None:
            measured = attempted(reporter, "SWAG", partial(bayesian_score, setup, found, spec.swag))
            swag, statistics = measured or (None, [])
            gaussian = attempted(reporter, "SWAG's file", partial(write_swag, setup, found, statistics))
    if epochs is not None:
        last, written = setup.read(snapshots[-1]), setup.read(of_mean.safetensors)
        flatness = attempted(reporter, "the flatness", lambda: measure_flatness(setup, last, written, epochs))
    selection = _selection(setup, finished.selection, outputs, results, reporter)
    delivers_start = selection is not None and selection.delivered == "start"
    delivered = _write_start(setup, results) if delivers_start else of_mean
    ensemble, beside = _ensemble(setup, results, snapshots), _control(reporter, control) if control else None
    if beside is not None:
        probe_images.record(setup, kept, "control", evaluator.probe)
    probed = None
    if spec.probe is not None:
        members = len(results.averaged)
        measure = partial(probe_images.conclude, setup, kept, of_mean.safetensors, members)
        probed = attempted(reporter, "what the networks make of the probe images", measure)
    on_sets = {name: read(scores) for name, scores in results.on_sets.items()}
    on_sets |= {"averaged": averaged.sets}
    others = (("ensemble", ensemble), ("swag", swag), ("control", beside.scores if beside else None))
    on_sets |= {name: one.sets for name, one in others if one is not None}
    metrics = Comparisons(
        start=_score(results.start),
        start_recomputed=_score(results.start_recomputed),
        last=_score(results.snapshots[-1]),
        averaged=averaged.report,
        ensemble=ensemble and ensemble.report,
        snapshots=None if ensemble else mean_score([_score(one) for one in results.snapshots]),
        swag=swag and swag.report,
        control=beside.scores.report if beside else None,
    )
    further = make_further_files(setup, reporter, delivered.safetensors)
    result = JobResult(
        weights=weights_file(delivered.safetensors),
        formats=further.offered,
        metrics=metrics,
        curve=[CurvePoint.of(n, _score(p)) for n, p in enumerate(results.averaged, start=1)],
        verdict=verdict(outputs.report.losses, _start_losses(results)),
        finished_early=results.stopped_at is not None,
        back_offs=results.back_offs,
        start_kind=results.start_kind if isinstance(spec.method, AutoMethod) else None,
        rate_probe=results.rate_probe,
        meetings=results.meetings if spec.meetings is not None else None,
        held_out=setup.data.held_out,
        selection=selection,
        evaluation=evaluated_sets(setup.data, on_sets),
        interpolation=line,
        normalization=results.normalization,
        flatness=flatness,
        probe=probed and probed[0],
    )
    losses = setup.writer.write_losses(outputs.report.losses, _start_losses(results))
    averaged_files = of_mean if delivers_start else None
    picture = attempted(reporter, "what a network makes of images", lambda: draw_answers(setup, of_mean.safetensors))
    return Outcome(
        result, *delivered, losses, averaged_files, further.onnx, further.pt2, further.hub, probed and probed[1], gaussian,
        picture, exact, beside.weights if beside else None,
    )  # fmt: skip


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
    return setup.writer.write_result(tensors, 0, _score(results.start).temperature, "start")


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


def _score(stored: dict[str, float] | None) -> Score:
    return Score.model_validate(stored)


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
