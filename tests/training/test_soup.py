"""A soup is the mean of its ingredients with recomputed BatchNorm; greedy takes in what does not hurt, and says what."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.averaging import reference
from tests.training.test_loop import batch_norm_batches
from tests.training.work import Recorder, make_work
from wbar.method import Soup
from wbar_averaging import write_safetensors
from wbar_training.loop import run
from wbar_training.meter import Stopped
from wbar_training.networks.architectures import Network, initialized, load
from wbar_training.plan import Ingredient, Work
from wbar_training.weights import run_digest

NETWORK = Network("resnet20", 10)


def soup_work(folder: Path, spoiled: bool = False, **method: object) -> Work:
    """Three checkpoints near the start; the third far away if spoiled."""
    work = make_work(folder, images=120)
    ingredients = []
    for n in range(3):
        torch.manual_seed(7)
        model = initialized(NETWORK)
        generator = torch.Generator().manual_seed(n)
        with torch.no_grad():
            for p in model.parameters():
                p.add_((3.0 if spoiled and n == 2 else 0.01) * torch.randn(p.shape, generator=generator))
        path = folder / f"ingredient-{n}.safetensors"
        write_safetensors(path, {f"module.{name}": tensor for name, tensor in model.state_dict().items()}, {})
        ingredients.append(Ingredient(f"ckpt_{n}", path, "module.", str(n) * 64))
    asked = Soup(type="soup", checkpoints=[one.id for one in ingredients], **method)  # type: ignore[arg-type]
    return Work(**{**vars(work), "method": asked.model_dump(mode="json"), "ingredients": tuple(ingredients)})


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0]])
def test_a_uniform_soup_is_the_weighted_mean_with_the_statistics_of_the_twin(
    tmp_path: Path, weights: list[float] | None
) -> None:
    work = soup_work(tmp_path, weights=weights)
    told = Recorder()
    outcome = run(work, told)
    tensors = [load_file(one.path) for one in work.ingredients]
    shares = torch.tensor(weights or [1.0] * 3, dtype=torch.float64)
    averaged = load_file(outcome.weights)
    model, _ = load(NETWORK, averaged)
    for name, _ in model.named_parameters():
        stacked = torch.stack([one[f"module.{name}"].double() for one in tensors])
        expected = (stacked * shares.view(-1, *[1] * (stacked.dim() - 1))).sum(dim=0) / shares.sum()
        torch.testing.assert_close(averaged[name].double(), expected, rtol=1e-7, atol=1e-9)
    for name, (mean, variance) in reference.batch_norm_statistics(model, batch_norm_batches(work)).items():
        torch.testing.assert_close(averaged[f"{name}.running_mean"].double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(averaged[f"{name}.running_var"].double(), variance, rtol=1e-4, atol=1e-5)
    assert outcome.chosen == ["ckpt_0", "ckpt_1", "ckpt_2"]
    assert [point.n for point in outcome.curve] == [1, 2, 3]
    assert outcome.curve[-1].loss == outcome.metrics.averaged.loss
    assert {progress.phase for progress in told.progress} == {"batchnorm", "evaluate"}


def test_a_greedy_soup_leaves_out_what_would_spoil_it(tmp_path: Path) -> None:
    work = soup_work(tmp_path, spoiled=True, average="greedy")
    told = Recorder()
    outcome = run(work, told)
    assert outcome.chosen is not None
    assert "ckpt_2" not in outcome.chosen
    assert any("ckpt_2 stays out" in line for line in told.logs)
    again = run(Work(**{**vars(work), "scratch": tmp_path}), Recorder())
    assert again.weights.read_bytes() == outcome.weights.read_bytes()
    assert json.dumps(again.metrics.model_dump()) == json.dumps(outcome.metrics.model_dump())


def test_flatness_of_a_soup_whose_ingredients_have_a_prefix_that_the_start_has_not(tmp_path: Path) -> None:
    work = soup_work(tmp_path)
    assert work.prefix == ""
    measured = Work(**{**vars(work), "flatness": True})
    found = run(measured, Recorder()).flatness
    assert found is not None
    assert found.epochs == []
    # Three neighbours: none of them is another network than it was.
    assert found.sharpness["last"] == pytest.approx(found.sharpness["start"], rel=0.5)


def test_the_digest_of_a_soup_knows_contents_and_no_ids(tmp_path: Path) -> None:
    work = soup_work(tmp_path)
    renamed = tuple(
        Ingredient(f"ckpt_x{n}", one.path, one.prefix, one.sha256) for n, one in enumerate(work.ingredients)
    )
    method = {**work.method, "checkpoints": [one.id for one in renamed]}
    other = Work(**{**vars(work), "ingredients": renamed, "method": method})
    assert run_digest(other) == run_digest(work)
    assert run_digest(Work(**{**vars(work), "ingredients": renamed[:2]})) != run_digest(work)


def test_a_soup_stops_when_it_is_told_to(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="cancel"):
        run(soup_work(tmp_path), Recorder(stop_at=0, reason="cancel"))
