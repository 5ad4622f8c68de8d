"""Children of a study evaluate their start once, and no weights are passed through twice for their statistics: same bits."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import LocalJob, Recorder, make_job, run
from wbar.method import Lawa
from wbar.recipe import Optimizer
from wbar_training.evaluator import Evaluator
from wbar_training.known_statistics import KnownStatistics
from wbar_training.outcome import Outcome
from wbar_training.setup import set_up

METHOD = Lawa(
    type="lawa",
    window=1,
    epochs=1,
    lr=0.02,
    pull=0.0,
    final_lr=0.02,
    shape="constant",
    snapshot_epochs=1,
    back_off=False,
)


def ran(job: LocalJob, monkeypatch: pytest.MonkeyPatch) -> tuple[Outcome, list[str]]:
    """The outcome of a job, and which evaluations of the start it made itself."""
    made: list[str] = []
    for name in ("evaluate_start", "train_score"):
        whole = getattr(Evaluator, name)
        monkeypatch.setattr(
            Evaluator, name, lambda self, *given, name=name, whole=whole: (made.append(name), whole(self, *given))[1]
        )
    outcome = run(job, Recorder())
    monkeypatch.undo()
    return outcome, made


def test_jobs_of_a_study_evaluate_their_start_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "study"
    first, made = ran(make_job(tmp_path / "first", METHOD, shared=shared), monkeypatch)
    assert made == ["evaluate_start", "train_score"]
    faster = {"recipe_batch_size": 20, "recipe_optimizer": Optimizer(name="sgd", weight_decay=0)}
    other, made = ran(make_job(tmp_path / "other", METHOD, shared=shared, **faster), monkeypatch)
    assert made == []
    alone, _ = ran(make_job(tmp_path / "alone", METHOD, **faster), monkeypatch)
    assert other.weights.read_bytes() == alone.weights.read_bytes()
    assert other.result == alone.result
    assert other.result.metrics.start == first.result.metrics.start
    (kept,) = shared.iterdir()
    kept.write_bytes(b"damaged")
    again, made = ran(make_job(tmp_path / "again", METHOD, shared=shared, **faster), monkeypatch)
    assert made == ["evaluate_start", "train_score"]
    assert again.result == alone.result
    # What decides the evaluation has a file of its own.
    _, made = ran(make_job(tmp_path / "seed", METHOD, shared=shared, seed=4), monkeypatch)
    _, more = ran(make_job(tmp_path / "augment", METHOD, shared=shared, recipe_augment="none"), monkeypatch)
    assert made == more == ["evaluate_start", "train_score"]
    assert len(list(shared.iterdir())) == 3


def test_statistics_of_the_same_weights_are_not_recomputed(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    job = make_job(tmp_path)
    setup = set_up(job.spec, job.workspace, lambda phase, images: seen.append((phase, images)))
    evaluator, start = setup.evaluator, setup.start()

    def recomputed() -> dict[str, torch.Tensor]:
        evaluator.network.load_state_dict(start)
        seen.clear()
        evaluator.recompute(evaluator.network)
        return {name: tensor.clone() for name, tensor in evaluator.network.state_dict().items()}

    def forwards() -> int:
        return len(calls)

    calls: list[object] = []
    evaluator.network.register_forward_hook(lambda *_: calls.append(None))
    whole = recomputed()
    assert forwards() > 0
    calls.clear()
    again = recomputed()
    assert forwards() == 0
    assert sum(images for _, images in seen) == 100, "the progress counts them all the same"
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    next(tensor for name, tensor in start.items() if name.endswith("conv1.weight")).mul_(2)
    other = recomputed()
    assert forwards() > 0, "other weights have other statistics"
    assert any(not torch.equal(whole[name], other[name]) for name in whole if "running" in name)
    calls.clear()
    setup.normalize_by([0.5] * 3, [0.2] * 3)
    recomputed()
    assert forwards() > 0, "so have other inputs"


def test_statistics_are_those_of_their_key() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    known = KnownStatistics()
    assert not known.restore(model, 1)
    known.keep(model, 1)
    model[1].running_mean.fill_(5)  # type: ignore[union-attr, operator]
    assert not known.restore(model, 2)
    assert known.restore(model, 1)
    assert model[1].running_mean.tolist() == [0, 0]  # type: ignore[union-attr, operator]
    known.forget()
    assert not known.restore(model, 1)
