"""A network with one output tells two classes apart: σ(z) is the second one's probability, and nothing else is different."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.training.jobs import METHOD, LocalJob, Recorder, make_job, run
from wbar.datasets import DatasetFacts, ImageShape
from wbar.errors import ClassesMismatch
from wbar.recipe import Recipe
from wbar.resolve import resolve_classes
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import Packed, Split, load_split
from wbar_training.losses import Target
from wbar_training.networks.architectures import initialized, load
from wbar_training.tasks.classification import ClassLoss
from wbar_training.uploads.dataset_archives import write_packed

NETWORK = Network("resnet20", 1)


def facts(*classes: str) -> DatasetFacts:
    return DatasetFacts(
        "classification", classes, 100, ImageShape(channels=1, height=8, width=8), False, (0.3,), (0.4,)
    )


def test_two_classes_fit_one_output_and_three_do_not() -> None:
    assert resolve_classes(None, NETWORK, facts("cat", "dog")) is None
    assert resolve_classes(["dog", "cat"], NETWORK, facts("cat", "dog")) == ["dog", "cat"]
    with pytest.raises(ClassesMismatch, match="3 classes and the checkpoint's network has 1 outputs"):
        resolve_classes(None, NETWORK, facts("cat", "dog", "fox"))


def test_its_loss_is_the_binary_cross_entropy_and_its_threshold_a_half() -> None:
    logits, labels = torch.tensor([[2.0], [-1.0], [0.3]]), torch.tensor([1, 1, 0])
    loss = ClassLoss(Recipe(), 2, None, torch.device("cpu"))
    target = loss.normed(Target(labels))
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    assert loss(logits, target, 3).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.correct(logits, target).item() == 1


def binary_job(folder: Path) -> LocalJob:
    """Zeros and ones among the digits, and a ResNet-20 with a single output."""
    job = make_job(folder, METHOD.model_copy(update={"cycles": 3}), images=400)
    packed, tensors = Packed.read(job.dataset), {}
    for split in ("train", "val"):
        whole = load_split(job.dataset, split, (8, 8), None)
        kept = whole.labels < 2
        tensors |= {f"{split}.images": whole.images[kept], f"{split}.labels": whole.labels[kept]}
    write_packed(job.dataset, tensors, ["one", "two"], tensors["train.images"], None, packed.warnings)
    torch.manual_seed(1)
    write_safetensors(job.start, initialized(NETWORK).state_dict(), {})
    return job.changed(network=NETWORK)


def test_it_learns_and_its_numbers_are_what_the_file_gives(tmp_path: Path) -> None:
    job = binary_job(tmp_path)
    outcome = run(job, Recorder())
    averaged = outcome.result.metrics.averaged
    assert averaged.accuracy > 0.9
    model, _ = load(NETWORK, load_file(outcome.weights))
    val: Split = load_split(job.dataset, "val", (8, 8), None)
    inputs = Preparer(job.plan.mean, job.plan.std, "none", 0, torch.device("cpu")).plain(val.images)
    with torch.no_grad():
        logits = model.eval()(inputs)[:, 0]
    assert F.binary_cross_entropy_with_logits(logits, val.labels.float()).item() == pytest.approx(
        averaged.loss, rel=1e-5
    )
    assert ((logits > 0) == (val.labels > 0)).double().mean().item() == pytest.approx(averaged.accuracy)
    # Read the wrong way round it is a start near chance, or below, and the other order explains it.
    again = binary_job(tmp_path / "again")
    again.start.write_bytes(outcome.weights.read_bytes())
    told = Recorder()
    run(again.changed(classes=("two", "one")), told)
    assert any("give `classes` as ['one', 'two']" in line for line in told.logs)
