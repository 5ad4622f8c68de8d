"""Outputs on images without labels: kept for every comparison, compared as a float64 twin does, and they change no weight."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests.training.attribute_jobs import ATTRIBUTES, CLASSES, make_attribute_job
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from wbar.datasets import DatasetFacts, ImageShape
from wbar.errors import ChannelsMismatch, ContentTooLarge, NoImages, TaskUnsupported, ValidationFailed
from wbar.method import METHODS
from wbar.probe_images import check_probe
from wbar.probe_results import CHANGES, MOST_PROBES
from wbar.spec import Network, StoredDataset, StoredWeights
from wbar_training import state_files
from wbar_training.data.augment import Preparer
from wbar_training.data.packed import Packed, load_split
from wbar_training.networks.architectures import load
from wbar_training.output_comparison import change, divergence, share_agreeing, stability
from wbar_training.probes import brightened, compressed, moved
from wbar_training.tasks.attributes import Attributes
from wbar_training.tasks.classification import Classification
from wbar_training.tasks.multilabel import Multilabel
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

PROBE = StoredDataset(id="ds_probe", sha256="4" * 64, blob="probe")
IMAGES = 30


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def with_probe(job: LocalJob) -> LocalJob:
    """The job with thirty of its held-out images as probes, without labels."""
    folder = job.scratch / "pictures"
    (folder / "some").mkdir(parents=True)
    for index, image in enumerate(load_split(job.dataset, "val", (8, 8), None).images[:IMAGES]):
        (folder / "some" / f"{index:03d}.png").write_bytes(png(image[0].numpy()))
    packed = pack(folder, job.workspace.input("probe"), UploadLimits(), "unlabelled")
    assert (packed.task, packed.classes, packed.images) == ("unlabelled", [], {"train": IMAGES, "val": 0})
    assert packed.names is not None
    assert packed.names[3].endswith("some/003.png")
    assert Packed.read(job.workspace.input("probe")) == packed
    return job.changed(probe=PROBE)


def outputs(job: LocalJob, tensors: dict[str, Tensor], images: Tensor) -> Tensor:
    model, _ = load(job.spec.network, tensors)
    prepare = Preparer(job.plan.mean, job.plan.std, "none", 0, torch.device("cpu"))
    with torch.no_grad():
        return model.eval()(prepare.plain(images)).double().softmax(1)


def test_every_comparison_is_asked_and_no_weight_changes(tmp_path: Path) -> None:
    method = METHOD.model_copy(update={"control": True, "control_lr": 0.05})
    plain = make_job(tmp_path / "plain", method)
    job = with_probe(make_job(tmp_path / "probe", method))
    told = Recorder()
    outcome, without = run(job, told), run(plain, Recorder())
    assert outcome.weights.read_bytes() == without.weights.read_bytes()
    assert outcome.result.metrics == without.result.metrics
    assert without.probe is None
    assert "probe" not in without.result.model_dump(mode="json")
    assert outcome.probe is not None
    found = outcome.result.probe
    assert found is not None
    with np.load(outcome.probe.outputs, allow_pickle=False) as file:
        kept = {name: torch.from_numpy(file[name]) for name in found.networks}
        assert list(file["classes"]) == [str(k) for k in range(10)]
        assert file["names"][0].endswith("some/000.png")
    assert set(kept) == {
        "start", "start_recomputed", "last", "averaged", "ensemble", "control", "curve_1", "curve_2",
    }  # fmt: skip
    images = load_split(job.dataset, "val", (8, 8), None).images[:IMAGES]
    snapshots = [outputs(job, load_file(told.snapshots[n]), images) for n in (1, 2)]
    want = {
        "start": outputs(job, load_file(job.start), images),
        "averaged": outputs(job, load_file(outcome.weights), images),
        "last": snapshots[1],
        "ensemble": (snapshots[0] + snapshots[1]) / 2,
        "control": outputs(job, load_file(job.scratch / "control" / "averaged.safetensors"), images),
    }
    for name, wanted in want.items():
        torch.testing.assert_close(kept[name].double(), wanted, atol=1e-6, rtol=1e-4, msg=name)
    torch.testing.assert_close(kept["curve_2"], kept["averaged"], atol=1e-5, rtol=1e-3)
    p, q = want["ensemble"].numpy(), want["averaged"].numpy()
    assert found.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-3)
    assert found.kept == pytest.approx((want["start"].argmax(1) == want["averaged"].argmax(1)).double().mean().item())
    assert [one.change for one in found.consistency] == list(CHANGES)
    darker = outputs(job, load_file(job.start), (images.double() * 0.9).round().to(torch.uint8))
    stays = (darker.argmax(1) == want["start"].argmax(1)).double().mean().item()
    assert found.consistency[4].start.unchanged == pytest.approx(stays)
    apart = ((want["start"] - want["averaged"]).abs().sum(1) / 2).sort(descending=True)
    assert found.most_changed[0].index == int(apart.indices[0])
    assert [one.changed for one in found.most_changed] == pytest.approx(apart.values[:24].tolist(), abs=1e-5)
    with Image.open(outcome.probe.thumbnails) as sheet:
        assert sheet.size == (24 * 64, 64)


def test_a_job_that_was_killed_has_the_same_outputs(tmp_path: Path) -> None:
    whole = run(with_probe(make_job(tmp_path / "whole")), Recorder())
    job = with_probe(make_job(tmp_path / "killed"))
    with pytest.raises(KilledHere):
        run(job, Recorder(die_at=14))
    again = run(job.changed(resume=state_files.latest(job.scratch)), Recorder())
    assert again.result.probe == whole.result.probe
    assert whole.probe is not None
    assert again.probe is not None
    assert again.probe.outputs.read_bytes() == whole.probe.outputs.read_bytes()


def test_a_soup_is_asked_too(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    told = Recorder()
    run(job, told)
    members = tuple(
        StoredWeights(id=f"ckpt_{n}", sha256=str(n), blob=f"w{n}", prefix="", network=job.spec.network) for n in (1, 2)
    )
    for n, one in enumerate(members, start=1):
        job.workspace.input(one.blob).write_bytes(told.snapshots[n].read_bytes())
    method = METHODS.validate_python({"type": "soup", "checkpoints": [one.id for one in members], "weights": [1, 3]})
    job = with_probe(job).changed(method=method, ingredients=members)
    outcome = run(job, Recorder())
    assert outcome.probe is not None
    with np.load(outcome.probe.outputs, allow_pickle=False) as file:
        ensemble = torch.from_numpy(file["ensemble"]).double()
    images = load_split(job.dataset, "val", (8, 8), None).images[:IMAGES]
    one, two = (outputs(job, load_file(told.snapshots[n]), images) for n in (1, 2))
    torch.testing.assert_close(ensemble, 0.25 * one + 0.75 * two, atol=1e-6, rtol=1e-4)


def test_the_numbers_are_those_of_a_slow_twin() -> None:
    torch.manual_seed(0)
    p, q = (torch.randn(7, 4, dtype=torch.float64).softmax(1) for _ in range(2))
    rows = [(a.tolist(), b.tolist()) for a, b in zip(p, q, strict=True)]
    classes = Classification(Network("resnet20", 4), "abcd").distributions
    kl = sum(sum(x * np.log(x / y) for x, y in zip(a, b, strict=True)) for a, b in rows) / 7
    assert divergence(classes(p), classes(q)) == pytest.approx(kl, rel=1e-12)
    agreeing = sum(a.index(max(a)) == b.index(max(b)) for a, b in rows) / 7
    assert share_agreeing(classes(p), classes(q)) == agreeing
    half = [sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for a, b in rows]
    assert change(classes(p), classes(q)).squeeze(1).tolist() == pytest.approx(half)
    gap = sum(abs(b[a.index(max(a))] - max(a)) for a, b in rows) / 7
    assert stability(classes(p), classes(q)) == pytest.approx((agreeing, gap))
    # Of labels each is by itself.
    labels = Multilabel(Network("resnet20", 4), "abcd").distributions
    pairs = [(x, y) for a, b in rows for x, y in zip(a, b, strict=True)]
    kl = sum(x * np.log(x / y) + (1 - x) * np.log((1 - x) / (1 - y)) for x, y in pairs) / len(pairs)
    assert divergence(labels(p), labels(q)) == pytest.approx(kl, rel=1e-12)
    assert share_agreeing(labels(p), labels(q)) == sum((x > 0.5) == (y > 0.5) for x, y in pairs) / len(pairs)
    gap = sum(abs(x - y) for x, y in pairs) / len(pairs)
    assert change(labels(p), labels(q)).mean().item() == pytest.approx(gap)
    assert stability(labels(p), labels(q))[1] == pytest.approx(gap)
    certain = torch.tensor([[1.0, 0.0]]).double()
    assert divergence(classes(certain), classes(certain)) == 0


def test_each_attribute_is_a_distribution_of_its_own() -> None:
    torch.manual_seed(1)
    names = ["size=large", "colour=red", "size=small", "size=medium", "colour=blue"]
    task = Attributes(Network("resnet20", 5), names)
    p, q = (task.softened(torch.randn(7, 5, dtype=torch.float64)) for _ in range(2))
    pairs = [
        [(a[own].tolist(), b[own].tolist()) for own in ([0, 2, 3], [1, 4])] for a, b in zip(p, q, strict=True)
    ]  # of each image, of each attribute: its probabilities before and after
    flat = [pair for image in pairs for pair in image]
    kl = sum(sum(x * np.log(x / y) for x, y in zip(a, b, strict=True)) for a, b in flat) / 14
    assert divergence(task.distributions(p), task.distributions(q)) == pytest.approx(kl, rel=1e-12)
    agreeing = sum(a.index(max(a)) == b.index(max(b)) for a, b in flat) / 14
    gap = sum(abs(b[a.index(max(a))] - max(a)) for a, b in flat) / 14
    assert stability(task.distributions(p), task.distributions(q)) == pytest.approx((agreeing, gap))
    halves = [[sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for a, b in image] for image in pairs]
    assert change(task.distributions(p), task.distributions(q)).tolist() == [pytest.approx(row) for row in halves]
    for row, image in zip(p, pairs, strict=True):
        sizes, colours = image[0][0], image[1][0]
        assert task.most_probable(row, 0) == (0, 2, 3)[sizes.index(max(sizes))]
        assert task.most_probable(row, 1) == (1, 4)[colours.index(max(colours))]


def test_a_job_of_attributes_is_asked_too(tmp_path: Path) -> None:
    job = with_probe(make_attribute_job(tmp_path, train=40, val=IMAGES))
    outcome = run(job, Recorder())
    found, task = outcome.result.probe, Attributes(job.spec.network, CLASSES)
    assert found is not None
    assert outcome.probe is not None
    with np.load(outcome.probe.outputs, allow_pickle=False) as file:
        kept = {name: torch.from_numpy(file[name]).double() for name in ("start", "averaged", "ensemble")}
        assert list(file["classes"]) == CLASSES
    by_attribute = {name: task.distributions(p) for name, p in kept.items()}
    for each in by_attribute.values():
        torch.testing.assert_close(each.sum(dim=2), torch.ones(IMAGES, 3, dtype=torch.float64))
    assert found.kl == pytest.approx(divergence(by_attribute["ensemble"], by_attribute["averaged"]), rel=1e-2)
    apart = change(by_attribute["start"], by_attribute["averaged"])
    first = found.most_changed[0]
    assert first.index == int(apart.mean(dim=1).argmax())
    attribute = list(ATTRIBUTES)[int(apart[first.index].argmax())]
    for name, answer in (("start", first.start), ("averaged", first.averaged)):
        assert answer.label.startswith(f"{attribute}=")
        assert answer.probability == pytest.approx(kept[name][first.index, CLASSES.index(answer.label)].item())


def test_images_are_moved_brightened_and_compressed() -> None:
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 1, 3, 4) * 20
    assert moved(image, 1, 3)[0, 0, 0].tolist() == [0, 0, 20, 40]
    assert moved(image, 2, 2)[0, 0, :, 1].tolist() == [20, 20, 20]
    assert moved(image, 9, 3)[0, 0, 1].tolist() == [80] * 4
    assert brightened(torch.tensor([0, 100, 250], dtype=torch.uint8), 1.1).tolist() == [0, 110, 255]
    flat = torch.full((2, 3, 8, 8), 90, dtype=torch.uint8)
    assert torch.equal(compressed(flat), flat)
    noise = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert compressed(noise).shape == noise.shape
    assert not torch.equal(compressed(noise), noise)


def test_an_archive_without_images_or_with_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    with pytest.raises(NoImages):
        pack(tmp_path / "some", tmp_path / "out", UploadLimits(), "unlabelled")
    dot = png(np.zeros((2, 2), np.uint8))
    for index in range(MOST_PROBES + 1):
        (tmp_path / "some" / f"{index}.png").write_bytes(dot)
    with pytest.raises(ContentTooLarge, match="more than 512 images"):
        pack(tmp_path / "some", tmp_path / "out", UploadLimits(), "unlabelled")


def facts(**changes: object) -> DatasetFacts:
    values = {"task": "classification", "classes": ("a", "b"), "train_images": 9, "many_sizes": False}
    values |= {"shape": ImageShape(channels=3, height=8, width=8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return DatasetFacts(**values | changes)  # type: ignore[arg-type]


def test_probe_images_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    network = make_job(tmp_path).spec.network
    check_probe(PROBE, facts(task="unlabelled", classes=()), facts(), network)
    check_probe(PROBE, facts(task="regression"), facts(task="attributes"), network)
    with pytest.raises(TaskUnsupported, match="the job is of task regression"):
        check_probe(PROBE, facts(), facts(task="regression"), network)
    with pytest.raises(TaskUnsupported, match="the job is of task detection"):
        check_probe(PROBE, facts(), facts(task="detection"), network)
    with pytest.raises(TaskUnsupported, match="ds_probe is of task segmentation"):
        check_probe(PROBE, facts(task="segmentation"), facts(), network)
    with pytest.raises(ValidationFailed, match="has 513 images"):
        check_probe(PROBE, facts(held_out_images=504), facts(), network)
    with pytest.raises(ChannelsMismatch):
        check_probe(PROBE, facts(shape=ImageShape(channels=4, height=8, width=8)), facts(), network)


@pytest.mark.long
def test_two_ranks_ask_the_probe_images_together(tmp_path: Path) -> None:
    job = with_probe(make_job(tmp_path, recipe_devices=2, swag=1, threads=2))
    told = Recorder()
    outcome = run(job, told)
    assert outcome.result.probe is not None, told.logs
    assert outcome.probe is not None
    assert outcome.swag is not None
    assert outcome.swag.exists()
    with np.load(outcome.probe.outputs, allow_pickle=False) as file:
        averaged = torch.from_numpy(file["averaged"]).double()
    images = load_split(job.dataset, "val", (8, 8), None).images[:IMAGES]
    torch.testing.assert_close(averaged, outputs(job, load_file(outcome.weights), images), atol=1e-6, rtol=1e-4)
