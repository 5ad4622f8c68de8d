"""What a job finds out about its start before the first step: its scores, its kind, and the rate that it bears."""

from pathlib import Path

from wbar.method import AutoMethod, CyclicSwa
from wbar.schedule import number
from wbar_training import decisions, familiarity, normalization_probe, probe_images
from wbar_training.comparisons import add_to_ensemble
from wbar_training.course import Course
from wbar_training.evaluator import StartEvaluation
from wbar_training.familiarity import StartLosses
from wbar_training.rate_probe import RateProber
from wbar_training.reporter import Reporter
from wbar_training.resume import Results
from wbar_training.setup import Setup
from wbar_training.shared_start import StartFindings, findings
from wbar_training.step import Stepper


def find_out(
    setup: Setup, shared: Path | None, reporter: Reporter, results: Results, course: Course, stepper: Stepper
) -> None:
    """Evaluate the start, which the network must hold, into `results`, and plan the course again by what was found.

    shared: the folder of what jobs of one study share, where there is one.
    stepper: tries rates, and leaves the network as it was.
    """
    found = findings(setup, shared, lambda: _measured(setup))
    start, training = found.evaluation, found.training
    results.start_losses, results.start_train_accuracy = start.outputs.report.losses, training.accuracy
    results.start_selection = start.outputs.selection
    held_out = (start.outputs.selection or start.outputs.report).losses.mean().item()
    losses = familiarity.measured(setup.evaluator, setup.model, training.loss, held_out)
    unfamiliar = losses.warning(setup.plan.augment)
    if unfamiliar is not None:
        reporter.log("warning", unfamiliar)
    method = setup.spec.method
    if isinstance(method, AutoMethod | CyclicSwa) and setup.spec.selects:
        prober = RateProber(setup, stepper, course.schedule, _customary(method))
        words = _know(setup, results, method, losses, start, prober)
        course.plan()
        reporter.log("info", f"{method.type}: {words}; the high rate is {course.schedule.at(0).lr:g}")
    as_it_came, recomputed = start.as_it_came, start.recomputed
    results.start, results.start_recomputed = as_it_came.report, recomputed.report
    results.on_sets |= {"start": dict(as_it_came.sets), "start_recomputed": dict(recomputed.sets)}
    probe_images.record(setup, results.probe, "start", setup.model)
    if setup.evaluator.recomputed_images:
        probe_images.record(setup, results.probe, "start_recomputed", setup.evaluator.network)
    if isinstance(method, CyclicSwa) and method.include_start:
        probe_images.add_to_ensemble(results.probe, "start")
        add_to_ensemble(setup.data.task, results, start.outputs)
        reporter.averaged(results.add_to_curve(recomputed.report), recomputed.report)
    if found.warning is not None:
        reporter.log("warning", found.warning)


def _measured(setup: Setup) -> StartFindings:
    start = setup.evaluator.evaluate_start(setup.model)
    training = setup.evaluator.train_score(setup.model)
    return StartFindings(start, training, normalization_probe.near_chance(setup, start.as_it_came.report))


def _customary(method: AutoMethod | CyclicSwa) -> float:
    return number(method.lr if isinstance(method, AutoMethod) else method.high.lr)


def _know(
    setup: Setup,
    results: Results,
    method: AutoMethod | CyclicSwa,
    losses: StartLosses,
    start: StartEvaluation,
    prober: RateProber,
) -> str:
    """Find out what the method asks of the start: its kind, and the rate that it bears. Returns it in words."""
    found = losses.in_words()
    if isinstance(method, AutoMethod):
        results.start_kind = decisions.kind_of_start(method, losses.training, losses.held_out)
        found += f": it is {results.start_kind}"
    fresh = setup.plan.recipe.head == "reset" or bool(setup.plan.recipe.reset)
    if method.probe_rate is True and not fresh:  # the loss of fresh layers is no bound: any rate lowers it
        probe = prober.find(_bearable_loss(setup, start), augmented=not losses.unfamiliar)
        results.rate_probe = probe
        found += "".join(f"; {one.in_words()}" for one in probe.tried)
    return found


def _bearable_loss(setup: Setup, start: StartEvaluation) -> float:
    """Return the start's loss on the selection split, in nats: the lower one of its own statistics and recomputed ones."""
    if setup.evaluator.recomputed_images:
        return start.selection_loss
    assert setup.data.selection is not None
    return min(start.selection_loss, setup.evaluator.settled_loss(setup.model, setup.data.selection))
