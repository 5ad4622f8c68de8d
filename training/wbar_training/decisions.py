"""What a job decides by looking at its images: the kind of start, whether the high rate was too high, when to stop, what to
give back. The loop asks; training images answer about the start and the rate, images set aside for choosing about the rest.
"""

from dataclasses import replace

from wbar.jobs import Selected
from wbar.method import AutoMethod, Plain, Start, Training
from wbar_training import resume
from wbar_training.averages import Mean
from wbar_training.courses import number
from wbar_training.meter import Reporter
from wbar_training.plan import Work
from wbar_training.setting import Setting

MAX_BACK_OFFS = 2


def kind_of_start(method: AutoMethod, training: float, held_out: float) -> Start:
    """By the loss on training images, augmented as they are trained on, over the loss on held-out ones."""
    if training < method.memorised.ratio * held_out:
        return "memorised"
    return "settled" if training < method.settled.ratio * held_out else "underfit"


def has_forgotten(results: resume.Results, chance: float) -> bool:
    """Whether the first snapshot knows less than half of what the start knew of its training images beyond chance."""
    start, found = results.start_train_accuracy, results.trough_train_accuracy
    return start is not None and found is not None and start > chance and found < chance + (start - chance) / 2


def out_of_patience(results: resume.Results, loss: float, patience: int) -> bool:
    """Take in the latest loss of w̄; whether `patience` in a row were not below the lowest before them."""
    better = results.best is None or loss < results.best
    results.best = loss if results.best is None else min(loss, results.best)
    results.waited = 0 if better else results.waited + 1
    return results.waited >= patience


def control_of(work: Work, method: Training) -> Work:
    """The cosine fine-tune of equal length from the same start, with what BatchNorm tracks (or the start's, if frozen)."""
    scratch = work.scratch / "control"
    scratch.mkdir(exist_ok=True)
    rate = number(method.control_lr)
    plain = Plain(type="none", epochs=method.total_epochs, lr=rate, control_lr=rate, final_lr=0.0, back_off=False)
    kept = work.recipe["batch_norm"] in ("frozen", "track")
    recipe = work.recipe | {"early_stopping": None} | ({} if kept else {"batch_norm": "track"})
    return replace(
        work,
        method=plain.model_dump(mode="json"),
        recipe=recipe,
        scratch=scratch,
        resume=resume.latest(scratch),
        flatness=False,
        swag=0,
    )


def guard(setting: Setting, mean: Mean, reporter: Reporter) -> Selected:
    """Put the start into the weights' files if w̄ is worse than it on the images set aside for choosing."""
    assert setting.choose is not None
    setting.probe.load_state_dict(setting.start())
    start = setting.predict(setting.probe, setting.choose).losses.mean().item()
    averaged = setting.judge(mean).mean().item()
    if averaged <= start:
        return "averaged"
    reporter.log(
        "warning",
        f"guard: the averaged weights' loss is {averaged:.5f} on the images set aside for choosing and the start's is "
        f"{start:.5f}: the weights to download are the start's",
    )
    setting.write_files(setting.start(), 0)
    return "start"
