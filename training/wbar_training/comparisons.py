"""The end of a job: the weights that are delivered, and their comparison with everything else, on the report split."""

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from wbar.method import AutoMethod
from wbar.results import Comparisons, CurvePoint, Delivered, JobResult, Score, Selection
from wbar_averaging import Epoch
from wbar_training import decisions
from wbar_training.analysis import attempted, bayesian_score, measure_flatness
from wbar_training.averages import Average, Mean, points_in
from wbar_training.evaluate import Outputs, score, verdict
from wbar_training.outcome import Outcome
from wbar_training.reporter import Reporter
from wbar_training.result_writer import weights_file
from wbar_training.resume import Results
from wbar_training.setup import Setup


def conclude(
    setup: Setup,
    reporter: Reporter,
    results: Results,
    average: Average,
    snapshots: Sequence[Path],
    epochs: Sequence[Epoch] | None,
    control: Callable[[], Score] | None,
) -> Outcome:
    """Finish the average, write the weights, and compare them.

    snapshots: the files of all of them, in order.
    epochs: the distances that the trajectory recorded, where flatness was asked for.
    control: trains and evaluates the control, where it was asked for.
    """
    evaluator, spec = setup.evaluator, setup.spec
    mean, selection = average.finish(evaluator.selection_losses, lambda message: reporter.log("info", message))
    outputs = evaluator.predict_mean(mean)
    weights, pytorch = setup.writer.write_result(evaluator.probe.state_dict(), points_in(mean))
    swag = flatness = None
    if spec.swag:
        points = [setup.read(path) for path in snapshots]
        swag = attempted(reporter, "SWAG", lambda: bayesian_score(setup, points, spec.swag))
    if epochs is not None:
        last, averaged = setup.read(snapshots[-1]), setup.read(weights)
        flatness = attempted(reporter, "the flatness", lambda: measure_flatness(setup, last, averaged, epochs))
    # After what reads the file, since the start may be put there.
    selection = _guarded(setup, mean, selection, reporter)
    metrics = Comparisons(
        start=_score(results.start),
        start_recomputed=_score(results.start_recomputed),
        last=_score(results.snapshots[-1]),
        averaged=evaluator.score(outputs),
        ensemble=_ensemble(setup, results),
        swag=swag,
        control=attempted(reporter, "the control", control) if control else None,
    )
    result = JobResult(
        weights=weights_file(weights),
        metrics=metrics,
        curve=[
            CurvePoint(n=n, accuracy=p["accuracy"], loss=p["loss"]) for n, p in enumerate(results.averaged, start=1)
        ],
        verdict=verdict(outputs.losses, _losses(results)),
        finished_early=results.stopped_at is not None,
        back_offs=results.back_offs,
        start_kind=results.start_kind if isinstance(spec.method, AutoMethod) else None,
        held_out=setup.data.held_out,
        selection=selection,
        normalization=results.normalization,
        flatness=flatness,
    )
    return Outcome(result, weights, pytorch)


def _guarded(setup: Setup, mean: Mean, selection: Selection | None, reporter: Reporter) -> Selection | None:
    """Return the selection with the choice of `guard`; the start is in the files where it is delivered."""
    if selection is None and setup.spec.selects:
        selection = Selection(delivered="averaged")  # early stopping alone: it looked at the selection split
    if not getattr(setup.spec.method, "guard", False):
        return selection
    delivered: Delivered = decisions.guard(setup, mean, reporter)
    if delivered == "start":
        recipe = setup.plan.recipe
        fresh = recipe.head == "reset" or bool(recipe.reset)
        # The uploaded tensors as they are: float64 does not survive the network, which is float32.
        setup.writer.write_result(setup.start() if fresh else setup.writer.start(), 0)
    return (selection or Selection(delivered=delivered)).model_copy(update={"delivered": delivered})


def _ensemble(setup: Setup, results: Results) -> Score:
    assert results.probabilities is not None
    # The points of the curve are the ensemble's members: the start too, if it is included.
    members = len(results.averaged)
    return score(results.probabilities / members, setup.data.report.labels)


def _score(stored: dict[str, float] | None) -> Score:
    return Score.model_validate(stored)


def _losses(results: Results) -> Tensor:
    assert results.start_losses is not None
    return results.start_losses


def add_to_ensemble(results: Results, outputs: Outputs) -> None:
    """Add a network's outputs to the ensemble's sum."""
    total = results.probabilities
    results.probabilities = outputs.probabilities.double() + (0 if total is None else total)
