"""The gain at full size: which arms are run, in which order, and what a second call leaves out; its images."""

from pathlib import Path

import pytest
import torch

from benchmarks.gain.blocks import FULL, WHOLE
from benchmarks.gain.images import splits
from benchmarks.gpu.gain import START, tasks_of
from benchmarks.swa_paper import pack, write_digits
from wbar.errors import SourceUnavailable
from wbar_training.uploads.builtin_images import fashion
from wbar_training.workspace import Workspace


def test_the_most_valuable_arms_come_first_and_starts_before_their_arms(tmp_path: Path) -> None:
    tasks = tasks_of(FULL, 3, None, set(), tmp_path)
    assert len(tasks) == len({task.key for task in tasks}) == len(FULL) * 3 * 6
    first = [(task.block.network, task.block.epochs, task.seed, task.arm, task.block.start) for task in tasks[:3]]
    assert first[:2] == [("resnet20", 12, 0, START, kind) for kind in ("memorised", "settled")]
    assert first[2] == ("resnet20", 12, 0, "control", "memorised")
    seen = set()
    for task in tasks:
        if task.arm == START:
            seen.add(task.start)
        assert task.start in seen


def test_what_is_finished_is_not_run_again(tmp_path: Path) -> None:
    tasks = tasks_of(FULL, 1, None, set(), tmp_path)
    for task in tasks:
        (tmp_path / task.start).touch()
    done = {task.key for task in tasks[:7]}
    assert tasks_of(FULL, 1, None, done, tmp_path) == tasks[7:]
    assert tasks_of(FULL, 1, None, {task.key for task in tasks}, tmp_path) == []


def test_a_start_is_trained_again_where_its_file_is_gone_and_an_arm_needs_it(tmp_path: Path) -> None:
    tasks = tasks_of(FULL, 1, None, set(), tmp_path)
    last = tasks[-1]
    again = tasks_of(FULL, 1, None, {task.key for task in tasks[:-1]}, tmp_path)
    assert {task.start for task in again} == {last.start}
    assert [task.arm for task in again if task.block == last.block] == [START, last.arm]


def test_all_of_fashion_mnist_is_trained_on_and_its_test_images_are_halved() -> None:
    try:
        images, _ = fashion("train")
    except SourceUnavailable as missing:
        pytest.skip(str(missing))
    parts = splits("fashion", WHOLE, 5000)
    assert torch.equal(parts.train.pixels, images)
    for held in (parts.held_out, parts.unseen):
        assert held.labels.bincount().tolist() == [500] * 10
    both = torch.cat([parts.held_out.pixels, parts.unseen.pixels]).flatten(1)
    tests = fashion("t10k")[0].flatten(1)
    assert torch.equal(both.long().sum(dim=1).sort().values, tests.long().sum(dim=1).sort().values)


def test_a_folder_with_train_and_test_is_packed(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits")
    _, facts = pack(tmp_path / "digits", Workspace(tmp_path))
    assert facts.classes == tuple("0123456789")
    assert (facts.shape.height, facts.shape.width) == (32, 32)
    assert facts.train_images == len(list((tmp_path / "digits" / "train").rglob("*.png")))
