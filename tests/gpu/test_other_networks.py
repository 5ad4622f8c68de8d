"""What is not the catalog's classifiers of classes, on a GPU: other tasks, timm's and transformers' networks, programs.

They are trained with torch's deterministic kernels alone, so that an operation that has none fails by its name; and killed in
the middle and gone on, they end in the bytes of a run that nothing disturbed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.shapes import CLASSES
from tests.exporting import exported, exported_job, own_net
from tests.training.attribute_jobs import make_attribute_job
from tests.training.detection_jobs import MASKED, SMALL, make_detection_job
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, make_job, run
from tests.training.regression_jobs import make_regression_job
from tests.training.segmentation_jobs import make_segmentation_job
from wbar.spec import JobSpec, Network
from wbar_averaging import write_safetensors
from wbar_training import state_files
from wbar_training.networks import timm_models
from wbar_training.networks.architectures import initialized

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

ONE = METHOD.model_copy(update={"cycles": 1})
# For networks fresh from their initialization, on a few small images.
SLOW = ONE.model_copy(
    update={"high": ONE.high.model_copy(update={"lr": 1e-3}), "low": ONE.low.model_copy(update={"lr": 1e-4})}
)
DIE_AT = 3


Check = Callable[[LocalJob, LocalJob], None]


@pytest.fixture
def same_bytes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Check:
    """Of two equal jobs one is killed in the middle and gone on: both end in the same bytes, by graphs."""
    monkeypatch.setattr(JobSpec, "reproducible", property(lambda _: True))
    return partial(_end_in_the_same_bytes, caplog)


def _end_in_the_same_bytes(caplog: pytest.LogCaptureFixture, whole: LocalJob, broken: LocalJob) -> None:
    told, again = Recorder(), Recorder()
    with caplog.at_level("INFO", logger="wbar.training"):
        undisturbed = run(whole, told)
    assert "without a CUDA graph" not in caplog.text
    broken = broken.changed(save_every_seconds=0.0)
    with pytest.raises(KilledHere):
        run(broken, Recorder(die_at=DIE_AT))
    resumed = run(broken.changed(resume=state_files.latest(broken.scratch)), again)
    expected = {point.step: point.loss for point in told.points if point.step > DIE_AT}
    assert {point.step: point.loss for point in again.points if point.step in expected} == expected
    mine, theirs = load_file(resumed.weights), load_file(undisturbed.weights)
    assert [name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])] == []
    assert resumed.weights.read_bytes() == undisturbed.weights.read_bytes()
    assert resumed.result.metrics == undisturbed.result.metrics


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["lraspp_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50"])
def test_masks(device: str, network: str, precision: str, tmp_path: Path, same_bytes: Check) -> None:
    def job(name: str) -> LocalJob:
        given = Network(network, 4, auxiliary=network == "fcn_resnet50")
        return make_segmentation_job(
            tmp_path / name, ONE, given, train=16, sizes=[(64, 48)], device=device, recipe_precision=precision,
            recipe_image_size=(48, 48), recipe_dice=0.5,
        )  # fmt: skip

    same_bytes(job("whole"), job("broken"))


@pytest.mark.parametrize("make", [make_attribute_job, make_regression_job])
def test_tables(device: str, make: Callable[..., LocalJob], tmp_path: Path, same_bytes: Check) -> None:
    def job(name: str) -> LocalJob:
        return make(tmp_path / name, SLOW, device=device, recipe_precision="bfloat16")

    same_bytes(job("whole"), job("broken"))


@pytest.mark.parametrize("network", [SMALL, MASKED])
def test_a_detector_learns_what_it_learns_on_the_cpu(device: str, network: str, tmp_path: Path) -> None:
    """A job that was killed goes on, without a promise of its bits."""
    pytest.importorskip("faster_coco_eval", reason="scores of boxes need it: pip install 'wbar[detection]'")

    def job(name: str, on: str) -> LocalJob:
        return make_detection_job(tmp_path / name, SLOW, Network(network, len(CLASSES)), train=8, device=on)

    expected, found, told = Recorder(), Recorder(), Recorder()
    on_cpu = run(job("cpu", "cpu"), expected).result
    whole = run(job("whole", device), found).result
    assert found.points[0].loss == pytest.approx(expected.points[0].loss, rel=0.01)
    for arm in ("start", "averaged"):
        assert getattr(whole.metrics, arm).loss == pytest.approx(getattr(on_cpu.metrics, arm).loss, rel=0.05), arm
    broken = job("broken", device).changed(save_every_seconds=0.0)
    with pytest.raises(KilledHere):
        run(broken, Recorder(die_at=DIE_AT))
    resumed = run(broken.changed(resume=state_files.latest(broken.scratch)), told).result
    assert told.points[-1].step == found.points[-1].step
    assert resumed.metrics.averaged.loss == pytest.approx(whole.metrics.averaged.loss, rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_exported_program(device: str, precision: str, tmp_path: Path, same_bytes: Check) -> None:
    data = exported(own_net())  # which draws: dropout, stochastic depth

    def job(name: str) -> LocalJob:
        return exported_job(tmp_path / name, data, ONE, device=device, recipe_precision=precision)

    same_bytes(job("whole"), job("broken"))


def test_the_catalogs_network_as_a_program_ends_in_the_same_bits(device: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": device, "recipe_precision": "bfloat16"}
    plain = make_job(tmp_path / "plain", ONE, **options)
    torch.manual_seed(7)
    job = exported_job(tmp_path / "program", exported(initialized(Network("resnet20", 10))), ONE, **options)
    mine, theirs = (load_file(run(each, Recorder()).weights) for each in (job, plain))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnextv2", "dinov2", "resnet"])
def test_transformers(device: str, family: str, precision: str, tmp_path: Path, same_bytes: Check) -> None:
    pytest.importorskip("transformers")
    from tests.training.test_transformers_families import folder_of, job_of, zipped

    upload = zipped(folder_of(family, tmp_path / "mine"))

    def job(name: str) -> LocalJob:
        (tmp_path / name).mkdir()
        return job_of(upload, tmp_path / name, precision=precision).changed(device=device)

    same_bytes(job("whole"), job("broken"))


@pytest.mark.parametrize(
    ("name", "side"), [("resnet10t", None), ("vit_tiny_patch16_224", 32), ("efficientnet_lite0", None)]
)
def test_timm(device: str, name: str, side: int | None, tmp_path: Path, same_bytes: Check) -> None:
    pytest.importorskip("timm")
    network = Network(name, 10, image_size=side, entry=timm_models.entry(name))

    def job(kind: str) -> LocalJob:
        made = make_job(
            tmp_path / kind, SLOW, images=48, device=device, recipe_precision="bfloat16", recipe_image_size=(32, 32)
        )
        torch.manual_seed(7)
        write_safetensors(made.start, initialized(network).state_dict(), {})
        return made.changed(network=network, start=made.spec.start.model_copy(update={"network": network}))

    same_bytes(job("whole"), job("broken"))
