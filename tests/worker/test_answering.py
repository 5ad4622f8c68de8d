"""Pictures that are too much to answer about are refused by their index: in pixels, in masks, in bytes of the answer."""

import io
import logging

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from wbar.datasets import LabelledTask
from wbar.predictions import AnsweredBoxes, AnsweredPixels, NotAnswered, PredictedNetwork, Units, Wanted
from wbar.spec import Network, StoredWeights
from wbar_training.networks.architectures import initialized
from wbar_worker import answering
from wbar_worker.answering import ANSWERING, Answering

PIXELS, BOXES, MASKS = "lraspp_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn", "maskrcnn_resnet18_96_fpn"
ALL = Wanted()


def picture(width: int = 32, height: int = 24) -> bytes:
    data = io.BytesIO()
    Image.effect_noise((width, height), 90).convert("RGB").save(data, "PNG")
    return data.getvalue()


def asked(name: str, task: LabelledTask, model: nn.Module | None = None, units: Units | None = None) -> Answering:
    network = Network(name, 4)
    weights = StoredWeights(id="job_1", sha256="a" * 64, blob="a" * 64, prefix="", network=network)
    question = PredictedNetwork(
        weights=weights, task=task, labels=("a", "b", "c", "d"), image_size=(24, 32), mean=(0.0,) * 3, std=(1.0,) * 3,
        augment="none", crop_ratio=1.0, interpolation="bilinear", units=units,
    )  # fmt: skip
    torch.manual_seed(0)
    return ANSWERING[task](question, [(model or initialized(network)).eval()], 10_000)


class Unchanged(nn.Module):
    def postprocess(self, found: list[dict[str, Tensor]], *_: object) -> list[dict[str, Tensor]]:
        return found


class Found(nn.Module):
    """Finds what it is given in every image."""

    def __init__(self, count: int, side: float = 20.0) -> None:
        super().__init__()
        self.scores = torch.linspace(0.9, 0.1, count)
        self.boxes = torch.tensor([[1.0, 2.0, 1 + side, 2 + side]]).repeat(count, 1)
        self.transform = Unchanged()

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        count = len(self.scores)
        masks, labels = torch.full((count, 1, 28, 28), 0.9), torch.ones(count, dtype=torch.int64)
        return [{"boxes": self.boxes, "labels": labels, "scores": self.scores, "masks": masks} for _ in images]


def refused(answer: object, index: int | None) -> str:
    assert isinstance(answer, NotAnswered), answer
    assert answer.index == index
    return answer.message


@pytest.mark.parametrize("task", ["classification", "segmentation", "detection"])
def test_a_picture_with_too_many_pixels_is_named(task: LabelledTask) -> None:
    name = {"classification": "resnet20", "segmentation": PIXELS, "detection": MASKS}[task]
    said = refused(asked(name, task).answer([picture(), picture(200, 100)], ALL), 1)
    assert "images/1" in said
    assert "200x100 pixels" in said
    assert "cannot be decoded" in refused(asked(name, task).answer([picture()[:-9]], ALL), 0)


def test_pixels_times_classes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MOST_OUTPUTS", 4 * 32 * 24)
    network = asked(PIXELS, "segmentation")
    answer = network.answer([picture(), picture(24, 32)], ALL)
    assert isinstance(answer, AnsweredPixels)
    assert [(one.width, one.height) for one in answer.maps] == [(32, 24), (24, 32)]
    assert [sum(one.pixels) for one in answer.maps] == [768, 768]
    said = refused(network.answer([picture(), picture(33, 24)], ALL), 1)
    assert "33x24 pixels, and a network with 4 classes is asked about at most 768" in said


def test_bytes_of_an_answer_are_limited_and_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    network, shown = asked(PIXELS, "segmentation"), picture()
    one = network.answer([shown], ALL)
    assert isinstance(one, AnsweredPixels)
    monkeypatch.setattr(answering, "MOST_ANSWER_BYTES", 2 * len(one.maps[0].png))
    for _ in range(2):
        assert isinstance(network.answer([shown] * 2, ALL), AnsweredPixels)
    assert "send fewer images" in refused(network.answer([shown] * 4, ALL), 2)
    found = asked(MASKS, "detection", Found(50))
    monkeypatch.setattr(answering, "MOST_ANSWER_BYTES", 100 * answering.BOX_BYTES)
    assert "by `top` or `score`" in refused(found.answer([picture()] * 3, ALL), 1)
    assert isinstance(found.answer([picture()] * 3, Wanted(most=20)), AnsweredBoxes)


def test_masks_are_limited_by_their_pixels_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MOST_MASK_PIXELS", 10 * 32 * 24)
    found = asked(MASKS, "detection", Found(11))
    said = refused(found.answer([picture(), picture()], ALL), 0)
    assert "32x24 pixels and 11 masks: 8448 pixels together, and at most 7680" in said
    for wanted in (Wanted(most=10), Wanted(score=0.11)):
        answer = found.answer([picture()], wanted)
        assert isinstance(answer, AnsweredBoxes)
        assert len(answer.found[0].masks or []) == 10


@pytest.mark.parametrize(("name", "task"), [("resnet20", "regression"), (PIXELS, "segmentation"), (MASKS, "detection")])
def test_what_is_not_finite_is_no_answer(name: str, task: LabelledTask) -> None:
    broken = Found(3)
    broken.boxes[0, 0] = torch.nan
    model = initialized(Network(name, 4)) if task != "detection" else broken
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)
    units = Units(mean=(0.0,) * 4, std=(1.0,) * 4) if task == "regression" else None
    assert "not finite" in refused(asked(name, task, model, units).answer([picture()], ALL), None)


def test_a_failing_network_names_the_picture(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError(f"no memory for {tuple(images.shape)}")

    with caplog.at_level(logging.CRITICAL, "wbar"):
        said = refused(asked(PIXELS, "segmentation", Failing()).answer([picture()], ALL), 0)
    assert "the network failed on images/0" in said


def test_a_detector_without_masks_has_none() -> None:
    answer = asked(BOXES, "detection").answer([picture(64, 48)], Wanted(most=7))
    assert isinstance(answer, AnsweredBoxes)
    [found] = answer.found
    assert (found.width, found.height, found.masks) == (64, 48, None)
    assert len(found.scores) <= 7
    assert found.scores == sorted(found.scores, reverse=True)
