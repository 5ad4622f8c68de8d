"""The line from the start to w̄: its points are the formula's, what it chooses is delivered, whatever made w̄."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.averaging import reference
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from tests.training.test_loop import batch_norm_batches, probabilities
from tests.training.test_soup import soup_job
from wbar.choices import AlphaLine
from wbar.jobs import Progress
from wbar.method import METHODS, Interpolate, Soup
from wbar.spec import Network
from wbar_training import state_files
from wbar_training.averages.choice import alpha_of
from wbar_training.data.packed import load_split
from wbar_training.networks.architectures import load
from wbar_training.outcome import Outcome
from wbar_training.reporter import StopReason
from wbar_training.tasks.classification import score

RATES = {"lr": 0.05, "control_lr": 0.05, "epochs": 2}
KINDS: dict[str, dict[str, Any]] = {
    "cyclic_swa": METHOD.model_dump(),
    "swa": RATES | {"type": "swa", "anneal_from": 0.05},
    "swad": RATES | {"type": "swa", "anneal_from": 0.05, "average": "swad", "snapshot_epochs": 0.5},
    "ema": RATES | {"type": "ema", "final_lr": 0.005},
    "lawa": RATES | {"type": "lawa", "final_lr": 0.005, "window": 2},
    "none": RATES | {"type": "none", "final_lr": 0.0},
    "auto": RATES | {"type": "auto", "guard": False},
    "greedy": METHOD.model_dump() | {"average": "greedy"},
    "window": METHOD.model_dump() | {"average": "window"},
}


def job_at(folder: Path, kind: str, asked: Interpolate | None) -> LocalJob:
    method = METHODS.validate_python(KINDS[kind])
    return make_job(folder, method.model_copy(update={"interpolate": asked}), images=40)


def line_of(outcome: Outcome) -> AlphaLine:
    assert outcome.result.interpolation is not None
    return outcome.result.interpolation


def check_point(job: LocalJob, mean: dict[str, torch.Tensor], alpha: float, outcome: Outcome) -> None:
    """The delivered weights are (1 − α)·start + α·mean, with the statistics of the twin."""
    start, delivered = load_file(job.start), load_file(outcome.weights)
    model, _ = load(job.spec.network, delivered)
    for name, _ in model.named_parameters():
        expected = (1 - alpha) * start[name].double() + alpha * mean[name].double()
        torch.testing.assert_close(delivered[name].double(), expected, rtol=1e-6, atol=1e-8)
    for name, (centre, variance) in reference.batch_norm_statistics(model, batch_norm_batches(job)).items():
        torch.testing.assert_close(delivered[f"{name}.running_mean"].double(), centre, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(delivered[f"{name}.running_var"].double(), variance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "cyclic_swa" else pytest.mark.long) for kind in KINDS]
)
def test_a_fixed_point_of_the_line_is_delivered_after_every_method(tmp_path: Path, kind: str) -> None:
    # The whole mean first: 1 is always on the line, and stands for w̄ as it would be without it.
    job = job_at(tmp_path / "mean", kind, Interpolate(alphas=[1], choose=1))
    whole = run(job, Recorder())
    if kind not in ("auto", "window"):  # there the line takes the place of the method's own
        plain = run(job_at(tmp_path / "plain", kind, None), Recorder())
        assert plain.result.metrics == whole.result.metrics
        assert plain.result.interpolation is None
    outcome = run(job_at(tmp_path / "point", kind, Interpolate(alphas=[0, 0.25], choose=0.5)), Recorder())
    line = line_of(outcome)
    assert (line.chosen, line.by) == (0.5, "request")
    assert [point.alpha for point in line.points] == [0, 0.25, 0.5, 1]
    assert line.points[2].loss == outcome.result.metrics.averaged.loss
    assert line.points[2].accuracy == outcome.result.metrics.averaged.accuracy
    assert line.points[0].loss == pytest.approx(outcome.result.metrics.start_recomputed.loss, rel=1e-9)
    assert line.points[-1].loss == whole.result.metrics.averaged.loss
    check_point(job, load_file(whole.weights), 0.5, outcome)


def test_the_selection_split_chooses_and_the_report_split_is_reported(tmp_path: Path) -> None:
    job = make_job(tmp_path, METHOD.model_copy(update={"interpolate": Interpolate()}), images=120)
    told = Recorder()
    outcome = run(job, told)
    line, result = line_of(outcome), outcome.result
    assert [point.alpha for point in line.points] == [n / 10 for n in range(11)]
    assert result.held_out.selection > 0
    chosen = next(point for point in line.points if point.alpha == line.chosen)
    assert (chosen.loss, chosen.accuracy) == (result.metrics.averaged.loss, result.metrics.averaged.accuracy)
    assert result.selection is not None
    assert result.selection.loss == chosen.selection_loss
    assert all(point.selection_loss is not None for point in line.points)
    assert result.selection_in_words()[0] == line.in_words()
    assert any(line.in_words() in said for said in told.logs)
    # The estimate of the work counts the line: progress never falls back and comes to its end.
    fractions = [progress.fraction for progress in told.progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1, abs=0.02)


def test_one_is_kept_unless_another_point_is_better_by_more_than_an_error() -> None:
    noise = torch.linspace(-1, 1, 50, dtype=torch.float64)
    mean = 1 + noise
    assert alpha_of({0.0: mean + 1, 0.5: mean - 0.01 * noise.abs() * noise.sign(), 1.0: mean}) == 1.0
    assert alpha_of({0.0: mean + 1, 0.4: mean - 0.1, 0.5: mean - 0.2, 1.0: mean}) == 0.5


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"average": "uniform"}, marks=pytest.mark.long),
        pytest.param({"average": "greedy"}, marks=pytest.mark.long),
        pytest.param({"weights": [1.0, 2.0, 0.5]}, marks=pytest.mark.long),
        {"average": "stock"},
    ],
    ids=str,
)
def test_the_line_of_a_soup(tmp_path: Path, options: dict[str, object]) -> None:
    job = soup_job(tmp_path, **options)
    mean = load_file(run(job, Recorder()).weights)
    asked = job.spec.method.model_copy(update={"interpolate": Interpolate(alphas=[0], choose=0.3)})
    outcome = run(job.changed(method=asked), Recorder())
    assert [point.alpha for point in line_of(outcome).points] == [0, 0.3, 1]
    check_point(job, mean, 0.3, outcome)
    chosen = run(job.changed(method=asked.model_copy(update={"interpolate": Interpolate()})), Recorder())
    selection = chosen.result.selection
    assert selection is not None
    assert selection.loss == next(
        point.selection_loss for point in line_of(chosen).points if point.alpha == line_of(chosen).chosen
    )


def test_a_model_stock_is_its_twins_and_says_its_ratios(tmp_path: Path) -> None:
    job = soup_job(tmp_path, average="stock")
    assert isinstance(job.spec.method, Soup)
    told = Recorder()
    outcome = run(job, told)
    runs = [load_file(job.workspace.input(one.blob)) for one in job.spec.ingredients]
    start = load_file(job.start)
    expected = reference.model_stock(
        start, [{name.removeprefix("module."): t for name, t in one.items()} for one in runs]
    )
    delivered = load_file(outcome.weights)
    model, _ = load(Network("resnet20", 10), delivered)
    ratios = outcome.result.stock
    assert ratios is not None
    for name, _ in model.named_parameters():
        torch.testing.assert_close(delivered[name].double(), expected[name], rtol=1e-6, atol=1e-8)
        assert 0 <= ratios[name] <= 1
    assert any("model stock of 3 runs" in line for line in told.logs)
    labels = load_split(job.dataset, "val", (8, 8), None).labels
    found = score(probabilities(job, delivered), labels)
    assert outcome.result.metrics.averaged.loss == pytest.approx(found.loss, rel=1e-5)
    assert [point.n for point in outcome.result.curve] == [3]


class DiesOnTheLine(Recorder):
    """Dies in the heartbeat after so many of the end of the job: in the middle of the line."""

    def __init__(self, heartbeats: int) -> None:
        super().__init__()
        self._left = heartbeats
        self._at_the_end = False

    def heartbeat(self, progress: Progress) -> StopReason | None:
        self._at_the_end |= progress.phase == "report"
        if self._at_the_end:
            self._left -= 1
            if self._left < 0:
                raise KilledHere
        return super().heartbeat(progress)


def test_a_death_in_the_middle_of_the_line_changes_nothing(tmp_path: Path) -> None:
    asked = Interpolate(alphas=[0, 0.25, 0.5, 0.75])
    undisturbed = run(job_at(tmp_path / "whole", "cyclic_swa", asked), Recorder())
    broken = job_at(tmp_path / "broken", "cyclic_swa", asked)
    for heartbeats in (3, 9):
        with pytest.raises(KilledHere):
            run(broken.changed(resume=state_files.latest(broken.scratch)), DiesOnTheLine(heartbeats))
    again = run(broken.changed(resume=state_files.latest(broken.scratch)), Recorder())
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert again.result == undisturbed.result
