"""The loop does what the method says, and an interruption anywhere changes nothing, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from tests.averaging import reference
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from wbar.errors import CompileFailed, Diverged
from wbar.method import METHODS, HighPhase, LowPhase
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import load_split
from wbar_training.draws import key, permutation
from wbar_training.evaluate import even_slices, forward_batch
from wbar_training.evaluator import BATCH_NORM_IMAGES
from wbar_training.loop import TrainingJob
from wbar_training.networks.architectures import load
from wbar_training.networks.tensors import read_tensors
from wbar_training.optim import decayed
from wbar_training.reporter import StopRequested
from wbar_training.step import StepResult
from wbar_training.tasks.classification import score


def test_averaged_weights_are_the_mean_of_the_snapshots_with_the_statistics_of_the_twin(tmp_path: Path) -> None:
    job = make_job(tmp_path, METHOD.model_copy(update={"cycles": 3}))
    told = Recorder()
    outcome = run(job, told)
    assert sorted(told.snapshots) == [1, 2, 3]
    snapshots = [load_file(told.snapshots[n]) for n in (1, 2, 3)]
    expected = reference.mean_of(snapshots)
    averaged = load_file(outcome.weights)
    model, _ = load(job.spec.network, averaged)
    for name, _ in model.named_parameters():
        assert torch.equal(averaged[name], expected[name].float()), name
    statistics = reference.batch_norm_statistics(model, batch_norm_batches(job))
    assert len(statistics) == 19
    for name, (mean, variance) in statistics.items():
        torch.testing.assert_close(averaged[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(averaged[f"{name}.running_var"].double(), variance, rtol=1e-4, atol=1e-5)
    assert torch.equal(averaged["bn1.num_batches_tracked"], snapshots[-1]["bn1.num_batches_tracked"])
    assert [point.n for point in outcome.result.curve] == [1, 2, 3]
    assert outcome.result.curve[-1].loss == outcome.result.metrics.averaged.loss
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in torch.load(outcome.pytorch).items())


def batch_norm_batches(job) -> list[torch.Tensor]:
    plan = job.plan
    train = load_split(job.dataset, "train", plan.image_size, None)
    prepare = Preparer(plan.mean, plan.std, plan.augment, plan.seed, torch.device("cpu"))
    drawn = permutation(len(train), plan.seed, "batchnorm")[:BATCH_NORM_IMAGES]
    return [
        prepare.augmented(train.images[drawn[part]], "batchnorm-augment", index)
        for index, part in enumerate(even_slices(len(drawn), forward_batch(plan.image_size)))
    ]


def test_steps_equal_a_plain_loop_with_autograd_for_the_pull(tmp_path: Path) -> None:
    # Small rates keep two float32 computations of a chaotic system side by side; a large λ makes the pull count.
    slow = {"cycles": 2, "pull": 2.0, "high": HighPhase(lr=0.002), "low": LowPhase(lr=0.0002)}
    job = make_job(tmp_path, METHOD.model_copy(update=slow), images=40)
    told = Recorder()
    run(job, told)
    expected = plain_loop(job)
    for n, want in enumerate(expected, start=1):
        written = load_file(told.snapshots[n])
        for name, value in want.items():
            torch.testing.assert_close(written[name], value, rtol=1e-3, atol=1e-4)


def plain_loop(job) -> list[dict[str, torch.Tensor]]:
    """The method as one would write it on a page: autograd for the pull, torch's SGD, a list of all snapshots."""
    plan = job.plan
    model, _ = load(job.spec.network, read_tensors(job.start))
    train = load_split(job.dataset, "train", plan.image_size, None)
    prepare = Preparer(plan.mean, plan.std, plan.augment, plan.seed, torch.device("cpu"))
    chosen = decayed(model)
    groups = [
        {"params": [p for n, p in model.named_parameters() if n in chosen], "weight_decay": plan.weight_decay},
        {"params": [p for n, p in model.named_parameters() if n not in chosen], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True)
    snapshots: list[dict[str, torch.Tensor]] = []
    anchor = [p.detach().clone() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    step = epoch = 0
    method = job.spec.method
    for _ in range(method.cycles):
        for lr in (method.high.lr, method.low.lr):
            epoch += 1
            for batch in permutation(len(train), plan.seed, "order", epoch).split(plan.batch_size):
                inputs = prepare.augmented(train.images[batch], "augment", step)
                torch.manual_seed(key(plan.seed, "forward", step))
                loss = F.cross_entropy(model(inputs), train.labels[batch])
                loss = loss + reference.pull_value(list(model.parameters()), anchor, method.pull)
                optimizer.zero_grad()
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                step += 1
        snapshots.append({name: value.clone() for name, value in model.state_dict().items()})
        mean = reference.mean_of(snapshots)
        anchor = [mean[name].float() for name in names]
    return snapshots


@pytest.mark.parametrize(
    ("die_at", "variant"),
    [
        (1, {}),
        (6, {}),
        (7, {}),
        (13, {"recipe_optimizer": {"name": "adamw", "weight_decay": 0.05}}),
        (20, {"recipe_grad_clip_norm": 0.5, "recipe_label_smoothing": 0.1}),
        (26, {"recipe_precision": "bfloat16"}),
    ],
)
def test_a_killed_job_ends_in_the_same_bytes(tmp_path: Path, die_at: int, variant: dict[str, object]) -> None:
    undisturbed = run(make_job(tmp_path / "whole", **dict(variant)), Recorder()).weights.read_bytes()
    broken = make_job(tmp_path / "broken", save_every_seconds=0.0, **dict(variant))
    with pytest.raises(KilledHere):
        run(broken, Recorder(die_at=die_at))
    latest = state_files.latest(broken.scratch)
    assert latest is not None
    assert state_files.step_of(latest) == die_at
    told = Recorder()
    again = run(broken.changed(resume=latest), told)
    assert again.weights.read_bytes() == undisturbed
    assert sorted(told.snapshots) == [1, 2]


def test_many_interruptions_one_after_the_other(tmp_path: Path) -> None:
    undisturbed = run(make_job(tmp_path / "whole"), Recorder())
    job = make_job(tmp_path / "broken", save_every_seconds=0.0)
    state = None
    for step in range(3, 28, 5):
        with pytest.raises(KilledHere):
            run(job.changed(resume=state), Recorder(die_at=step))
        state = state_files.latest(job.scratch)
    outcome = run(job.changed(resume=state), Recorder())
    assert outcome.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert outcome.result.metrics == undisturbed.result.metrics
    assert outcome.result.curve == undisturbed.result.curve


def test_a_pause_saves_its_exact_position(tmp_path: Path) -> None:
    undisturbed = run(make_job(tmp_path / "whole"), Recorder()).weights.read_bytes()
    job = make_job(tmp_path / "paused")
    with pytest.raises(StopRequested, match="pause"):
        run(job, Recorder(stop_at=14))
    state = state_files.latest(job.scratch)
    assert state is not None
    assert run(job.changed(resume=state), Recorder()).weights.read_bytes() == undisturbed


def test_the_start_counts_when_it_is_included(tmp_path: Path) -> None:
    """In the mean, as the first point of the curve, and in the ensemble."""
    job = make_job(tmp_path, METHOD.model_copy(update={"include_start": True}))
    told = Recorder()
    outcome = run(job, told)
    averaged, result = load_file(outcome.weights), outcome.result
    points = [read_tensors(job.start), *(load_file(path) for path in told.snapshots.values())]
    expected = reference.mean_of(points)["conv1.weight"].float()
    assert torch.equal(averaged["conv1.weight"], expected)
    assert sorted(told.snapshots) == [1, 2]
    assert [point.n for point in result.curve] == [1, 2, 3]
    assert result.curve[0].loss == result.metrics.start_recomputed.loss
    assert result.curve[-1].loss == result.metrics.averaged.loss
    outputs = [probabilities(job, tensors) for tensors in points]
    labels = load_split(job.dataset, "val", (8, 8), None).labels
    ensemble = score(torch.stack(outputs).mean(dim=0), labels)
    assert result.metrics.ensemble.loss == pytest.approx(ensemble.loss, rel=1e-6)
    assert averaged_points(outcome.weights) == 3


def probabilities(job: LocalJob, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Softmax outputs on the held-out images, float64."""
    model, _ = load(job.spec.network, tensors)
    plan, images = job.plan, load_split(job.dataset, "val", (8, 8), None).images
    with torch.no_grad():
        return (
            model.eval()(Preparer(plan.mean, plan.std, "none", 0, torch.device("cpu")).plain(images))
            .double()
            .softmax(1)
        )


def averaged_points(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["wbar.snapshots"])


@pytest.mark.parametrize(
    ("method", "points"),
    [
        ({"type": "lawa", "epochs": 3, "window": 2, "final_lr": 0.01}, 2),
        ({"type": "ema", "epochs": 2, "final_lr": 0.01}, 14),
        ({"type": "none", "epochs": 2, "final_lr": 0.0}, 1),
    ],
)
def test_the_file_says_how_many_points_are_averaged_in_it(
    tmp_path: Path, method: dict[str, object], points: int
) -> None:
    chosen = METHODS.validate_python({"lr": 0.05, "control_lr": 0.05} | method)
    assert averaged_points(run(make_job(tmp_path, chosen), Recorder()).weights) == points


def test_of_a_greedy_average_the_file_counts_what_was_kept(tmp_path: Path) -> None:
    hot = {"cycles": 4, "average": "greedy", "high": HighPhase(lr=0.3), "low": LowPhase(lr=0.3), "pull": 0.0}
    outcome = run(make_job(tmp_path, METHOD.model_copy(update=hot)), Recorder())
    assert outcome.result.selection is not None
    assert outcome.result.selection.kept is not None
    assert averaged_points(outcome.weights) == len(outcome.result.selection.kept) < 4


def test_a_diverging_loss_is_said_with_step_phase_and_hint(tmp_path: Path) -> None:
    hot = {"high": HighPhase(lr=100.0), "low": LowPhase(lr=100.0), "pull": 50.0, "back_off": False}
    job = make_job(tmp_path, METHOD.model_copy(update=hot))
    with pytest.raises(Diverged, match=r"at step \d+ \(cycle \d, (high|low) phase, learning rate 100\).*lower method"):
        run(job, Recorder())


def test_what_is_not_finite_is_never_stepped_on(tmp_path: Path) -> None:
    """The step whose loss is not finite is not taken: the weights are those that it was computed from."""
    job = make_job(
        tmp_path, METHOD.model_copy(update={"high": HighPhase(lr=100.0), "low": LowPhase(lr=100.0), "pull": 50.0})
    )
    training = TrainingJob(job.spec, job.workspace, Recorder())
    before: list[dict[str, torch.Tensor]] = []
    take = training.stepper.take

    def remember(*arguments: Any) -> StepResult:
        before.append({name: tensor.clone() for name, tensor in training.model.named_parameters()})
        return take(*arguments)

    training.stepper.take = remember  # type: ignore[method-assign]
    with pytest.raises(Diverged, match="at step"):
        training.run()
    assert len(before) > 1
    for name, tensor in training.model.named_parameters():
        assert torch.equal(tensor.nan_to_num(), before[-1][name].nan_to_num()), name


def test_names_dtypes_and_metadata_come_back_as_uploaded(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    start = {f"module.{name}": t.half() if t.is_floating_point() else t for name, t in read_tensors(job.start).items()}
    del start["module.bn1.num_batches_tracked"]
    write_safetensors(job.start, start, {})
    outcome = run(job.changed(prefix="module."), Recorder())
    written = load_file(outcome.weights)
    assert {name: tensor.dtype for name, tensor in written.items()} == {name: t.dtype for name, t in start.items()}
    with safe_open(outcome.weights, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["wbar.architecture"] == "resnet20"
    assert json.loads(metadata["wbar.image_size"]) == [3, 8, 8]
    assert json.loads(metadata["wbar.classes"]) == list("0123456789")
    assert metadata["wbar.snapshots"] == "2"


def test_states_that_cannot_be_used_are_put_aside_one_after_the_other(tmp_path: Path) -> None:
    whole = run(make_job(tmp_path / "whole"), Recorder()).weights.read_bytes()
    job = make_job(tmp_path / "broken", save_every_seconds=0.0)
    with pytest.raises(KilledHere):
        run(job, Recorder(die_at=9))
    older, latest = state_files.all_of(job.scratch)
    latest.write_bytes(b"half a state")
    with pytest.raises(KilledHere):
        run(job.changed(resume=latest), told := Recorder(die_at=10))
    assert any("an older state is tried" in line for line in told.logs)
    assert f"info: went on from step {state_files.step_of(older)} of 28" in told.logs
    for state in state_files.all_of(job.scratch):
        state.write_bytes(b"of another version")
    told = Recorder()
    assert run(job.changed(resume=state_files.latest(job.scratch)), told).weights.read_bytes() == whole
    assert any("starts over" in line for line in told.logs)


def test_what_is_evaluated_of_a_half_precision_checkpoint_is_what_is_written(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    start = {name: t.half() if t.is_floating_point() else t for name, t in read_tensors(job.start).items()}
    write_safetensors(job.start, start, {})
    outcome = run(job, Recorder())
    model, _ = load(job.spec.network, read_tensors(outcome.weights))
    val = load_split(job.dataset, "val", (8, 8), None)
    plan = job.plan
    inputs = Preparer(plan.mean, plan.std, "none", 0, torch.device("cpu")).plain(val.images)
    with torch.no_grad():
        loss = F.cross_entropy(model.eval()(inputs), val.labels).item()
    assert loss == pytest.approx(outcome.result.metrics.averaged.loss, rel=1e-5)


def test_progress_and_metrics_tell_the_whole_story(tmp_path: Path) -> None:
    told = Recorder()
    run(make_job(tmp_path), told)
    steps = [point.step for point in told.points]
    assert steps == sorted(set(steps))
    assert steps[-1] == told.progress[-1].total_steps == 28
    assert {progress.phase for progress in told.progress} >= {
        "loading",
        "high",
        "low",
        "batchnorm",
        "evaluate",
        "report",
    }
    fractions = [progress.fraction for progress in told.progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert [step for step, durable in told.states if durable] == [7, 14, 21, 28]
    assert all(point.pull_loss == pytest.approx(0.01 * point.distance_to_mean**2) for point in told.points)


def test_a_last_batch_of_one_image_is_left_out(tmp_path: Path) -> None:
    told = Recorder()
    run(make_job(tmp_path, images=100, recipe_batch_size=33), told)
    assert told.progress[-1].total_steps == 4 * 3


def test_a_start_near_chance_is_warned_about(tmp_path: Path) -> None:
    told = Recorder()
    run(make_job(tmp_path), told)
    assert any("near chance" in line and "classes" in line for line in told.logs)


@pytest.mark.long
def test_a_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with pytest.raises(CompileFailed, match=r"torch.compile failed .* leave recipe.compile out"):
        run(make_job(tmp_path, recipe_compile=True), Recorder())
