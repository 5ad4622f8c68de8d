"""The decisions that a job takes by its images: the kind of start, the high rate, when to stop, what to deliver.

Training images answer about the rate, the selection split about when to stop and what to deliver, both about the start.
"""

from dataclasses import replace

from wbar.choices import Delivered, NormalizationProbe
from wbar.method import AutoMethod, Plain, StartKind, Training
from wbar.schedule import Schedule, build_schedule, number
from wbar.spec import JobSpec
from wbar_training import resume, state_files
from wbar_training.averages.average import Evaluated
from wbar_training.reporter import Reporter
from wbar_training.workspace import Workspace

MAX_BACK_OFFS = 2


class ControlLeftOut(Exception):
    """Raised where the control is not trained to its end; the message says why."""


def kind_of_start(method: AutoMethod, training_loss: float, held_out_loss: float) -> StartKind:
    """Return the kind of start, by the ratio of its losses.

    training_loss: on training images, see `wbar_training.familiarity`; in nats.
    held_out_loss: on held-out images, in nats.
    """
    if training_loss < method.memorised.ratio * held_out_loss:
        return "memorised"
    return "settled" if training_loss < method.settled.ratio * held_out_loss else "underfit"


def has_forgotten(start: float | None, snapshot: float, chance: float) -> bool:
    """Return whether the first snapshot lost more than half of the start's accuracy beyond chance on training images.

    start, snapshot: accuracies on training images. chance: the accuracy of a guess.
    """
    return start is not None and start > chance and snapshot < chance + (start - chance) / 2


def out_of_patience(results: resume.Results, loss: float, patience: int) -> bool:
    """Record the latest loss of w̄; return whether `patience` losses in a row were not below the lowest before them.

    loss: on the selection split, in nats.
    """
    better = results.best is None or loss < results.best
    results.best = loss if results.best is None else min(loss, results.best)
    results.waited = 0 if better else results.waited + 1
    return results.waited >= patience


def _plain(method: Training, schedule: Schedule) -> Plain:
    """Return the control's method: a cosine from its peak rate to 0, of as many steps."""
    rate, epochs = number(method.control_lr), schedule.total_steps / schedule.steps_per_epoch
    return Plain(type="none", epochs=epochs, lr=rate, control_lr=rate, final_lr=0.0, back_off=False)


def control_of(
    spec: JobSpec,
    workspace: Workspace,
    method: Training,
    schedule: Schedule,
    normalization: NormalizationProbe | None = None,
) -> tuple[JobSpec, Workspace]:
    """Return the control: a cosine fine-tune of as many steps as the job planned, from the same start, in a folder of its own.

    BatchNorm statistics are those that training tracks (or the start's, if frozen). A state in the folder is gone on
    from.

    normalization: the one that was found for the job.
    """
    scratch = workspace.scratch / "control"
    scratch.mkdir(exist_ok=True)
    plain = _plain(method, schedule)
    kept = spec.recipe.batch_norm in ("frozen", "track")
    changes: dict[str, object] = {"early_stopping": None} | ({} if kept else {"batch_norm": "track"})
    if normalization is not None:
        changes["normalize"] = normalization.normalization
    recipe = spec.recipe.model_copy(update=changes)
    others = {
        "find_normalization": False,
        "flatness": False,
        "surface": None,
        "swag": 0,
        "formats": (),
        "keeps_mean": False,
        "meetings": None,
        "probe": None,
    }
    control = spec.model_copy(update={"method": plain, "recipe": recipe, **others})
    inputs = workspace.inputs or workspace.scratch
    return control, replace(workspace, scratch=scratch, inputs=inputs, resume=state_files.latest(scratch))


def walked_as_control(method: Training, schedule: Schedule, results: resume.Results) -> bool:
    """Return whether the control's training is this job's, so that its model is the last iterate, to the bit."""
    if not isinstance(method, AutoMethod) or results.back_offs or results.stopped_at is not None:
        return False
    total, control = schedule.total_steps, build_schedule(_plain(method, schedule), schedule.steps_per_epoch)
    return all(schedule.rate(step) == control.rate(step) and schedule.pull(step) == 0 for step in range(total))


def guard(start: Evaluated, averaged: Evaluated, reporter: Reporter) -> Delivered:
    """Return what to deliver: the start, if w̄ is worse than it on the selection split."""
    if averaged.values.mean() <= start.values.mean():
        return "averaged"
    reporter.log(
        "warning",
        f"guard: on the selection split the averaged weights have {averaged.values.mean().item():.5f} and the start "
        f"{start.values.mean().item():.5f} (lower is better): the weights to download are the start's",
    )
    return "start"
