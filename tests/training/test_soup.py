"""A soup is the mean of its ingredients with recomputed BatchNorm; greedy takes in what does not hurt, and says what."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.averaging import reference
from tests.training.jobs import LocalJob, Recorder, make_job, run
from tests.training.test_loop import batch_norm_batches, probabilities
from wbar.method import Soup
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_training.data.packed import load_split
from wbar_training.networks.architectures import initialized, load
from wbar_training.reporter import StopRequested
from wbar_training.tasks.classification import score

NETWORK = Network("resnet20", 10)


def soup_job(folder: Path, spoiled: bool = False, **method: object) -> LocalJob:
    """Three checkpoints near the start; the third far away if spoiled."""
    job = make_job(folder, images=120)
    ingredients = []
    for n in range(3):
        torch.manual_seed(7)
        model = initialized(NETWORK)
        generator = torch.Generator().manual_seed(n)
        with torch.no_grad():
            for p in model.parameters():
                p.add_((3.0 if spoiled and n == 2 else 0.01) * torch.randn(p.shape, generator=generator))
        path = job.workspace.input(f"ingredient-{n}")
        write_safetensors(path, {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, {})
        blob, digest = f"ingredient-{n}", str(n) * 64
        ingredients.append(StoredWeights(id=f"ckpt_{n}", sha256=digest, blob=blob, prefix="module.", network=NETWORK))
    asked = Soup(type="soup", checkpoints=[one.id for one in ingredients], **method)  # type: ignore[arg-type]
    return job.changed(method=asked, ingredients=tuple(ingredients))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_a_uniform_soup_is_the_weighted_mean_with_the_statistics_of_the_twin(
    tmp_path: Path, weights: list[float] | None
) -> None:
    job = soup_job(tmp_path, weights=weights)
    told = Recorder()
    outcome = run(job, told)
    tensors = [load_file(job.workspace.input(one.blob)) for one in job.spec.ingredients]
    shares = torch.tensor(weights or [1.0] * 3, dtype=torch.float64)
    averaged = load_file(outcome.weights)
    model, _ = load(NETWORK, averaged)
    for name, _ in model.named_parameters():
        stacked = torch.stack([one[f"module.{name}"].double() for one in tensors])
        expected = (stacked * shares.view(-1, *[1] * (stacked.dim() - 1))).sum(dim=0) / shares.sum()
        torch.testing.assert_close(averaged[name].double(), expected, rtol=1e-7, atol=1e-9)
    for name, (mean, variance) in reference.batch_norm_statistics(model, batch_norm_batches(job)).items():
        torch.testing.assert_close(averaged[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(averaged[f"{name}.running_var"].double(), variance, rtol=1e-4, atol=1e-5)
    assert outcome.result.selection is None, "nothing was selected"
    members = [probabilities(job, {name.removeprefix("module."): t for name, t in one.items()}) for one in tensors]
    mean = sum(share * member for share, member in zip(shares, members, strict=True)) / shares.sum()
    labels = load_split(job.dataset, "val", (8, 8), None).labels
    assert outcome.result.metrics.ensemble.loss == pytest.approx(score(mean, labels).loss, rel=1e-6), "weighted alike"
    assert [point.n for point in outcome.result.curve] == [1, 2, 3]
    assert outcome.result.curve[-1].loss == outcome.result.metrics.averaged.loss
    assert {progress.phase for progress in told.progress} == {"batchnorm", "evaluate"}


def test_a_greedy_soup_leaves_out_what_would_spoil_it(tmp_path: Path) -> None:
    job = soup_job(tmp_path, spoiled=True, average="greedy")
    told = Recorder()
    outcome = run(job, told)
    selection = outcome.result.selection
    assert selection is not None
    assert selection.kept is not None
    assert "ckpt_2" not in selection.kept
    assert (selection.of, selection.delivered) == (3, "averaged")
    assert any("ckpt_2 stays out" in line for line in told.logs)
    again = run(job, Recorder())
    assert again.weights.read_bytes() == outcome.weights.read_bytes()
    assert json.dumps(again.result.metrics.model_dump()) == json.dumps(outcome.result.metrics.model_dump())


@pytest.mark.long
def test_flatness_of_a_soup_whose_ingredients_have_a_prefix_that_the_start_has_not(tmp_path: Path) -> None:
    job = soup_job(tmp_path)
    assert job.spec.start.prefix == ""
    flatness = run(job.changed(flatness=True), Recorder()).result.flatness
    assert flatness is not None
    assert flatness.epochs == []
    # Three neighbours: none of them is another network than it was.
    assert flatness.sharpness["last"] == pytest.approx(flatness.sharpness["start"], rel=0.5)


def test_the_digest_of_a_soup_knows_contents_and_no_ids(tmp_path: Path) -> None:
    job = soup_job(tmp_path)
    renamed = tuple(one.model_copy(update={"id": f"ckpt_x{n}"}) for n, one in enumerate(job.spec.ingredients))
    method = job.spec.method.model_copy(update={"checkpoints": [one.id for one in renamed]})
    other = job.changed(ingredients=renamed, method=method)
    assert other.spec.run_digest() == job.spec.run_digest()
    assert job.changed(ingredients=renamed[:2]).spec.run_digest() != job.spec.run_digest()


def test_a_soup_stops_when_it_is_told_to(tmp_path: Path) -> None:
    with pytest.raises(StopRequested, match="cancel"):
        run(soup_job(tmp_path), Recorder(stop_at=0, reason="cancel"))
