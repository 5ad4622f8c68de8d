"""The loss on a grid of random directions: the same slice for every job, the own loss in the middle, its cost known."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import make_job
from wbar.loss_surface import LossSurface, SurfaceOptions
from wbar_training.analysis import _Around
from wbar_training.random_surface import surface_images
from wbar_training.setup import Setup, set_up

OPTIONS = SurfaceOptions(points=3, reach=0.5, around=["start"])


def measured(folder: Path, **changes: object) -> tuple[Setup, LossSurface, list[int]]:
    """The surface around the start of a job, and how many images went through the network for it."""
    seen: list[int] = []
    job = make_job(folder, surface=OPTIONS, **changes)
    setup = set_up(job.spec, job.workspace, lambda phase, images: seen.append(images))
    around = _Around(setup)
    seen.clear()
    found = around.surface({"start": setup.start()})
    assert found is not None
    return setup, found, seen


def test_jobs_with_other_seeds_show_the_same_slice(tmp_path: Path) -> None:
    setup, one, seen = measured(tmp_path / "one", recipe_batch_norm="frozen", seed=3)
    _, other, _ = measured(tmp_path / "other", recipe_batch_norm="frozen", seed=4)
    assert one == other
    assert one.positions == [-0.5, 0.0, 0.5]
    assert (one.train_images, one.val_images) == (100, len(setup.data.report))
    assert sum(seen) == surface_images(setup, OPTIONS, 0)
    setup.evaluator.network.load_state_dict(setup.start())
    loss = setup.evaluator.score(setup.evaluator.predict(setup.evaluator.network)).loss
    assert one.val_loss["start"][1][1] == pytest.approx(loss, rel=1e-6)
    rows = one.train_loss["start"]
    assert rows[0][0] != rows[2][2], "the point reflected is another one"
    assert rows[0][2] != rows[2][0], "the two directions differ"


def test_batch_norm_is_recomputed_at_every_point_and_the_network_left_as_it_was(tmp_path: Path) -> None:
    setup, found, seen = measured(tmp_path)
    assert sum(seen) == surface_images(setup, OPTIONS, 100)
    setup.evaluator.network.load_state_dict(setup.start())
    setup.evaluator.recompute(setup.evaluator.network, 512)
    loss = setup.evaluator.score(setup.evaluator.predict(setup.evaluator.network)).loss
    assert found.val_loss["start"][1][1] == pytest.approx(loss, rel=1e-6)


def test_a_point_without_a_finite_loss_is_null(tmp_path: Path) -> None:
    job = make_job(tmp_path, surface=OPTIONS, recipe_batch_norm="frozen")
    setup = set_up(job.spec, job.workspace, lambda phase, images: None)
    start = setup.start()
    name = next(name for name, tensor in start.items() if tensor.dim() == 4)
    start[name] = torch.full_like(start[name], 1e38)
    found = _Around(setup).surface({"start": start})
    assert found is not None
    assert found.train_loss["start"] == [[None] * 3] * 3
