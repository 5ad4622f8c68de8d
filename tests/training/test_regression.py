"""Numbers of every image: loss and score against a float64 twin, whole jobs, and a start that was killed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, run
from tests.training.regression_jobs import TARGETS, make_regression_job
from wbar.method import METHODS, Soup
from wbar.recipe import Recipe
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.data.packed import Packed
from wbar_training.losses import Target
from wbar_training.mlflow_model import AveragedModel
from wbar_training.networks.architectures import initialized
from wbar_training.tasks.regression import Regression, RegressionLoss, Scale

CPU = torch.device("cpu")
MEAN, STD = torch.tensor([50.0, -0.2], dtype=torch.float64), torch.tensor([10.0, 0.01], dtype=torch.float64)
NAMES = ["age", "shift"]


def twin(outputs: torch.Tensor, targets: torch.Tensor, delta: float | None) -> list[float]:
    """The loss of each image, number by number, in Python's floats."""
    losses = []
    for row, wanted in zip(outputs.tolist(), targets.tolist(), strict=True):
        each = []
        for k, (z, y) in enumerate(zip(row, wanted, strict=True)):
            r = abs(z - (y - MEAN[k].item()) / STD[k].item())
            square = r * r if delta is None else r * r / 2
            each.append(square if delta is None or r <= delta else delta * (r - delta / 2))
        losses.append(sum(each) / len(each))
    return losses


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return 2 * torch.randn(6, 2), MEAN + 2 * STD * torch.randn(6, 2, dtype=torch.float64)


@pytest.mark.parametrize("delta", [None, 1.0, 0.3])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_loss_is_its_formula_however_the_batch_is_cut(delta: float | None, standardize: bool) -> None:
    outputs, targets = batch()
    recipe = Recipe() if delta is None else Recipe(loss="huber", huber_delta=delta)
    loss = RegressionLoss(recipe, Scale(MEAN, STD, standardize), CPU)
    given = outputs if standardize else outputs.double() * STD + MEAN
    whole = loss.normed(Target(targets))
    expected = sum(twin(outputs, targets, delta)) / 6
    # As outputs in the targets' units are float32, 50.0 and 0.01 apart, they are rounded to about 1e-5 deviations.
    assert loss(given, whole, 6).item() == pytest.approx(expected, rel=1e-5 if standardize else 1e-4)
    parts = [loss(given[p], whole.part(p), 6) for p in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(parts[0] + parts[1], loss(given, whole, 6))
    assert loss.correct(given, whole).isnan()


def test_the_score_is_scikit_learns_in_the_targets_own_units() -> None:
    outputs, targets = batch()
    task = Regression(Network("resnet20", 2), NAMES, Scale(MEAN, STD))
    kept = task.outputs(outputs, targets)
    torch.testing.assert_close(kept.answers, outputs.double() * STD + MEAN)
    assert kept.losses.tolist() == pytest.approx(twin(outputs, targets, None))
    score = task.score(kept.answers, targets)
    assert score == task.score(kept.answers, targets, kept.losses)
    assert score.regression is not None
    for k, name in enumerate(NAMES):
        y, predicted, one = targets[:, k].numpy(), kept.answers[:, k].numpy(), score.regression.by_target[name]
        assert one.r2 == pytest.approx(r2_score(y, predicted))
        assert one.mse == pytest.approx(mean_squared_error(y, predicted))
        assert one.rmse == pytest.approx(mean_squared_error(y, predicted) ** 0.5)
        assert one.mae == pytest.approx(mean_absolute_error(y, predicted))
    assert score.accuracy == score.regression.r2 == pytest.approx(r2_score(targets.numpy(), kept.answers.numpy()))
    assert score.loss == pytest.approx(kept.losses.mean().item())
    assert (score.ece, score.temperature) == (None, None)
    assert task.mean_loss(outputs, targets).item() == pytest.approx(score.loss, rel=1e-5)


def test_a_constant_target_has_no_r2() -> None:
    outputs, targets = batch()
    task = Regression(Network("resnet20", 2), NAMES, Scale(MEAN, STD))
    targets[:, 1] = 0.1
    found = task.score(task.outputs(outputs, targets).answers, targets).regression
    assert found is not None
    assert found.by_target["shift"].r2 is None
    assert found.r2 == found.by_target["age"].r2
    targets[:, 0] = 3.0
    score = task.score(task.outputs(outputs, targets).answers, targets)
    assert score.regression is not None
    assert (score.accuracy, score.regression.r2) == (0.0, None)


def test_the_scale_follows_the_order_of_the_outputs(tmp_path: Path) -> None:
    job = make_regression_job(tmp_path)
    packed = Packed.read(job.dataset)
    assert packed.target_mean is not None
    scale = Scale.of(packed, list(reversed(TARGETS)), True)
    assert scale.mean.tolist() == packed.target_mean[::-1]


LEARNS = METHODS.validate_python(
    {"type": "cyclic_swa", "cycles": 2, "high": {"lr": 0.00625, "epochs": 5}, "low": {"lr": 0.000625, "epochs": 2}}
    | {"pull": 0.0, "control_lr": 0.05, "probe_rate": False}
)


@pytest.mark.long
def test_a_job_learns_ink_and_where_it_lies(tmp_path: Path) -> None:
    job = make_regression_job(tmp_path, LEARNS, train=400, val=100)
    recorder = Recorder()
    outcome = run(job, recorder)
    scores = outcome.result.metrics
    assert outcome.result.verdict == "better"
    assert scores.start.accuracy < 0
    assert scores.averaged.accuracy > 0.8
    assert scores.averaged.regression is not None
    assert scores.averaged.regression.by_target["ink"].rmse > 100  # of numbers around 300,000: in their own units
    assert scores.ensemble is not None
    assert scores.ensemble.regression is not None
    with safe_open(outcome.weights, framework="pt") as file:
        header = file.metadata()
    packed = Packed.read(job.dataset)
    assert json.loads(header["wbar.classes"]) == list(TARGETS)
    assert json.loads(header["wbar.targets"]) == {"mean": packed.target_mean, "std": packed.target_std}
    model = AveragedModel(outcome.weights)
    with safe_open(job.dataset, framework="pt") as file:
        images, targets = file.get_tensor("val.images"), file.get_tensor("val.labels")
    predicted = model.predict((images.float() / 255).expand(-1, 3, -1, -1).numpy())
    assert r2_score(targets.numpy(), predicted) == pytest.approx(scores.averaged.accuracy, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        (METHOD.model_dump() | {"average": "window"}, {"loss": "huber", "huber_delta": 0.5}),
        ({"type": "auto", "epochs": 2, "lr": 0.005, "control_lr": 0.005, "control": True}, {}),
    ],
)
def test_a_death_after_any_step_changes_nothing(
    tmp_path: Path, method: dict[str, object], recipe: dict[str, object]
) -> None:
    def job(name: str) -> LocalJob:
        changes = {f"recipe_{option}": value for option, value in recipe.items()}
        made = make_regression_job(tmp_path / name, METHODS.validate_python(method), **changes)  # type: ignore[arg-type]
        return made.changed(save_every_seconds=0.0)

    whole = run(job("whole"), Recorder())
    for step in (1, 5):
        again = job(f"killed-{step}")
        with pytest.raises(KilledHere):
            run(again, Recorder(die_at=step))
        resumed = run(again.changed(resume=state_files.latest(again.scratch)), Recorder())
        assert resumed.weights.read_bytes() == whole.weights.read_bytes()
        assert resumed.result == whole.result


def test_the_ensemble_is_the_mean_of_predictions_and_a_guess_has_no_temperature(tmp_path: Path) -> None:
    job, told = make_regression_job(tmp_path, train=40, val=20), Recorder()
    metrics = run(job, told).result.metrics
    with safe_open(job.dataset, framework="pt") as file:
        images, targets = file.get_tensor("val.images"), file.get_tensor("val.labels")
    pixels = (images.float() / 255).expand(-1, 3, -1, -1).numpy()
    members = [torch.from_numpy(AveragedModel(path).predict(pixels)) for path in told.snapshots.values()]
    assert metrics.ensemble is not None
    expected = r2_score(targets.numpy(), torch.stack(members).double().mean(dim=0).numpy())
    assert metrics.ensemble.accuracy == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert metrics.averaged.temperature is None
    assert all(point.accuracy is None for point in told.points)


def test_a_soup_of_numbers(tmp_path: Path) -> None:
    job = make_regression_job(tmp_path, Soup(type="soup", checkpoints=["ckpt_a", "ckpt_b"]), train=40, val=20)
    ingredients = []
    for name in "ab":
        torch.manual_seed(ord(name))
        write_safetensors(job.workspace.input(name), initialized(job.spec.network).state_dict(), {})
        ingredients.append(
            StoredWeights(id=f"ckpt_{name}", sha256=name * 64, blob=name, prefix="", network=job.spec.network)
        )
    result = run(job.changed(ingredients=tuple(ingredients)), Recorder()).result
    assert result.metrics.averaged.regression is not None
    assert set(result.metrics.averaged.regression.by_target) == set(TARGETS)
