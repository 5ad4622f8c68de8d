"""Masks of boxes: read from COCO's JSON, refused by name, changed as the images are, and scored as COCO does it."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.shapes import CLASSES, write_boxes_archive
from tests.training.test_box_archives import FILES, Document, changed, coco, packed
from wbar.errors import InvalidArchive
from wbar.spec import Network
from wbar_training.data.augment import Preparer
from wbar_training.data.boxes import AREA, CLASS, CORNERS, NO_BOX, BoxFeed, FittedImages, load_boxes, targets_of
from wbar_training.data.examples import Request
from wbar_training.data.feed import One
from wbar_training.data.instance_masks import as_bits, mask_of, of_bits, runs_of
from wbar_training.networks import architectures
from wbar_training.networks.detectors import found_by
from wbar_training.tasks.coco_scores import Overlaps, box_score, evaluators
from wbar_training.tasks.detection import MOST, Detection, _rows
from wbar_training.tasks.mask_overlaps import INSIDE, Window, pixels_of, windows
from wbar_training.uploads import boxed, coco_masks
from wbar_training.uploads.coco_masks import CocoRuns
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.packing import pack

NAMES = list(CLASSES)
CPU = torch.device("cpu")
pycocotools: Any = pytest.importorskip("pycocotools.mask")


# Reading.


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("kind", ["anywhere", "whole pixels", "doubled points", "on the edge and beyond"])
def test_a_polygon_has_the_pixels_that_cocos_library_gives_it(kind: str) -> None:
    draws = np.random.default_rng(5)
    for _ in range(150):
        height, width = (int(side) for side in draws.integers(2, 50, 2))
        points = draws.uniform(0, 1, (draws.integers(3, 9), 2)) * [width, height]
        if kind == "whole pixels":
            points = points.round()
        elif kind == "doubled points":
            points = np.repeat((points * 2).round() / 2, 2, axis=0)
        elif kind == "on the edge and beyond":
            points = (points * 1.3 - 0.15 * np.array([width, height])).clip(-1, [width + 1, height + 1])
        outline = points.ravel().tolist()
        theirs = pycocotools.decode(pycocotools.frPyObjects([outline], height, width))[:, :, 0] > 0
        ours = np.zeros((height, width), bool)
        coco_masks._fill(ours, outline, "here")
        assert np.array_equal(ours, theirs)


def test_runs_are_read_as_numbers_and_as_text() -> None:
    draws = np.random.default_rng(6)
    for _ in range(100):
        size = tuple(int(side) for side in draws.integers(1, 70, 2))
        mask = draws.random(size) < draws.random()
        mask[draws.integers(size[0]), draws.integers(size[1])] = True
        text = pycocotools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert np.array_equal(coco_masks.mask_of(CocoRuns(size, text), size, "here"), mask)
        down = np.concatenate([[False], mask.T.ravel()])
        counts = np.diff([0, *np.flatnonzero(down[1:] != down[:-1]), mask.size]).tolist()
        assert np.array_equal(coco_masks.mask_of(CocoRuns(size, counts), size, "here"), mask)


def test_runs_and_bits_keep_every_pixel() -> None:
    draws = np.random.default_rng(7)
    for size in ((1, 1), (3, 5), (8, 8), (13, 7)):
        for share in (0.0, 0.3, 1.0):
            mask = draws.random(size) < share
            assert np.array_equal(mask_of(torch.from_numpy(runs_of(mask)), size).numpy(), mask)
            masks = torch.from_numpy(np.stack([mask, ~mask]))
            assert torch.equal(of_bits(as_bits(masks), size), masks)


def masked(**changes: object) -> Document:
    """The annotations of `coco` with a mask for each box but the crowd's."""
    square = {"segmentation": [[0, 0, 5, 0, 5, 5, 0, 5]]}
    document = changed(lambda d: d["annotations"][2].update(square))
    document["annotations"][0].update(changes)
    return document


def whole(document: Document) -> dict[str, bytes | Document]:
    val = coco("d")
    for one in val["annotations"]:
        one["segmentation"] = {"size": [30, 40], "counts": [0, 90, 1110]}
    return {**FILES, "train/annotations.json": document, "val/annotations.json": val}


def test_masks_are_read_with_their_boxes(tmp_path: Path) -> None:
    two = [[2, 3, 8, 3, 8, 8, 2, 8], [30, 20, 35, 20, 35, 25]]
    found = packed(tmp_path, whole(masked(segmentation=two)))
    assert (found.masks, found.warnings) == (True, [])
    train = load_boxes(tmp_path / "out", "train", None, masks=True)
    car, crowd = train.masks(0)
    assert car[3:8, 2:8].all()
    assert car[20:25, 30:35].any()
    assert not car[:3].any()
    assert torch.equal(
        crowd, torch.zeros(30, 40, dtype=torch.bool).index_fill_(1, torch.arange(20, 40), True)
    )  # its box
    assert train.masks(1).sum() == 25
    assert train.masks(2).shape == (0, 30, 40)
    val = load_boxes(tmp_path / "out", "val", None, masks=True)
    assert val.masks(0)[0, :, :3].all()  # down the first three columns
    batch = train.batch(slice(0, 3), Preparer((0.0,) * 3, (1.0,) * 3, "none", 0, CPU))
    targets = targets_of(batch.labels, batch.masks, (30, 40))
    assert torch.equal(targets[0]["masks"][0], car.to(torch.uint8))
    assert [len(one["masks"]) for one in targets] == [1, 1, 0]  # no crowd


def test_a_crowds_mask_that_is_none_is_its_box(tmp_path: Path) -> None:
    files = whole(masked(segmentation=[[2, 3, 8, 3, 8, 8, 2, 8]]))
    document = files["train/annotations.json"]
    assert isinstance(document, dict)
    document["annotations"][1]["segmentation"] = {"size": [30, 40], "counts": [1200]}
    assert document["annotations"][1]["iscrowd"] == 1
    found = packed(tmp_path, files)
    assert (found.masks, found.warnings) == (True, [])
    assert load_boxes(tmp_path / "out", "train", None, masks=True).masks(0)[1].sum() == 30 * 20


@pytest.mark.parametrize("empty", [None, []])
def test_a_dataset_without_masks_is_one_of_boxes(tmp_path: Path, empty: list[float] | None) -> None:
    train, val = coco(), coco("d")
    for one in (*train["annotations"], *val["annotations"]):
        one["segmentation"] = empty
    found = packed(tmp_path, {**FILES, "train/annotations.json": train, "val/annotations.json": val})
    assert (found.masks, found.warnings) == (False, [])
    assert "masks" not in found.document()


BOX = "'train/annotations.json': annotation 1"


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], f"{BOX}, polygon 0 of its `segmentation` has 7 numbers: x and y of three points or more"),
        ([[0, 0, 5, 0, 5, 5], [1, 2, 3, 4]], f"{BOX}, polygon 1 of its `segmentation` has 4 numbers"),
        ([[0, 0, 45.5, 0, 5, 5]], "has the point (45.5, 0), outside its image of 40x30 pixels"),
        ([[0, 0, 5, -2, 5, 5]], "has the point (5, -2), outside its image"),
        ([[0, 0, 5, float("nan"), 5, 5]], "has the point (5, nan), outside its image"),
        ([[1, 1, 9, 1, 3, 1]], f"{BOX} has a `segmentation` without a pixel of its image of 40x30 pixels"),
        ({"size": [30, 40], "counts": [1200]}, f"{BOX} has a `segmentation` without a pixel"),
        ({"size": [40, 30], "counts": [0, 1200]},
         f"{BOX} has a `segmentation` of 30x40 pixels, and its image has 40x30: `size` is [height, width]"),
        ({"size": [30, 40], "counts": [0, 1199]},
         f"{BOX} has counts of 1199 pixels in its `segmentation`, and its image has 1200 pixels"),
        ({"size": [30, 40], "counts": [-1, 1201]}, f"{BOX} has the count -1 in its `segmentation`"),
        ({"size": [30, 40], "counts": [2**62, 2**62]}, f"{BOX} has the count {2**62}"),
        ({"size": [30, 40], "counts": "0"}, f"{BOX} has counts of 0 pixels"),
        ({"size": [30, 40], "counts": "oooooooo0"}, "that are no runs as COCO's library writes them"),
        ({"size": [30, 40], "counts": "o"}, "that are no runs"),
        ({"size": [30, 40], "counts": ""}, "that are no runs"),
        ({"size": [30, 40], "counts": "ä"}, "that are no runs"),
        ({"size": [30, 40], "counts": "\ud800"}, f"{BOX} has `counts` that are no runs as COCO's library writes them"),
        ({"size": [30, 40]}, f"{BOX} has a `segmentation` that is neither polygons nor runs"),
        ([1, 2, 3, 4, 5, 6], f"{BOX} has a `segmentation` that is neither polygons nor runs"),
    ],
)  # fmt: skip
def test_bad_masks_are_named_and_leave_a_dataset_of_boxes(tmp_path: Path, segmentation: object, said: str) -> None:
    found = packed(tmp_path, whole(masked(segmentation=segmentation)))
    (warning,) = [one for one in found.warnings if "masks were left out" in one]
    assert said in warning
    assert not found.masks


def test_masks_that_are_too_large_together_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxed, "MOST_PIXELS", 1199)
    found = packed(tmp_path, whole(masked(segmentation=[[0, 0, 5, 0, 5, 5, 0, 5]])))
    assert any("has 2 masks, 2400 pixels in all, over the limit of 1199" in one for one in found.warnings)
    assert not found.masks


def test_an_area_that_is_not_said_is_that_of_the_mask(tmp_path: Path) -> None:
    document = masked(segmentation=[[0, 0, 5, 0, 5, 5, 0, 5]], bbox=[0, 0, 20, 20])
    for one in document["annotations"]:
        one.pop("area", None)
    found = packed(tmp_path, whole(document))
    assert found.masks
    split = load_boxes(tmp_path / "out", "train", None, masks=True)
    assert split.labels[0, 0, AREA] == split.masks(0)[0].sum() == 25


def test_an_endless_outline_is_refused() -> None:
    with pytest.raises(InvalidArchive, match="pixels long, over the limit of 3355443"):
        coco_masks.mask_of([[0, 0, 40, 30] * 100_000], (30, 40), "here")


# Augmentation.


def shapes(folder: Path, size: tuple[int, int] = (60, 90)) -> Path:
    write_boxes_archive(folder / "shapes.zip", 6, 2, [size, (50, 50)], masks=True)
    pack(folder / "shapes.zip", folder / "packed", UploadLimits(), "detection")
    return folder / "packed"


def around(mask: Tensor) -> list[int]:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


@pytest.mark.parametrize("augment", ["none", "flip", "scale_crop_flip"])
def test_masks_are_changed_as_their_boxes_are(tmp_path: Path, augment: str) -> None:
    """Drawn shapes fill their boxes: whatever was done, a mask reaches as far as what is seen of its box."""
    path = shapes(tmp_path)
    split, size, seen = load_boxes(path, "train", None, masks=True), (64, 80), 0
    fitted = FittedImages(split, size, augment, (0.5,) * 3, seed=3)
    plain = FittedImages(load_boxes(path, "train", None), size, augment, (0.5,) * 3, seed=3)
    for index in range(len(split)):
        for seed in range(8):
            image, boxes, bits = fitted[One(index, seed)]
            theirs = plain[One(index, seed)]
            assert torch.equal(theirs[0], image)  # the same draws, with masks and without
            for own, other, mask in zip(boxes, theirs[1], of_bits(bits, size), strict=True):
                if own[CLASS] == NO_BOX:
                    continue
                assert torch.equal(own, other)
                left, top, right, bottom = around(mask)
                box = own[CORNERS].tolist()
                assert left >= box[0] - 1.6
                assert top >= box[1] - 1.6
                assert right <= box[2] + 1.6
                assert bottom <= box[3] + 1.6
                if augment != "scale_crop_flip":  # a crop may cut off where a shape touched its box
                    assert [left, top, right, bottom] == pytest.approx(box, abs=2.1)
                seen += 1
    assert seen > 30


def test_a_box_of_whose_mask_nothing_is_seen_is_left_out(tmp_path: Path) -> None:
    triangle = [[0, 0, 40, 0, 0, 30]]
    document = masked(segmentation=triangle, bbox=[0, 0, 40, 30])
    packed(tmp_path, whole(document))
    split = load_boxes(tmp_path / "out", "train", None, masks=True)
    fitted = FittedImages(split, (30, 40), "none", (0.5,) * 3, seed=3)
    assert fitted[One(0, 0)][1][0, CLASS] == 1
    fitted._masks = lambda *_: torch.zeros(2, 30, 40, dtype=torch.bool)  # type: ignore[method-assign]
    _, boxes, _ = fitted[One(0, 0)]
    assert boxes[:, CLASS].tolist() == [NO_BOX, 2]  # the crowd stays: it is no object to learn


@pytest.mark.long  # a process of its own imports torch
def test_loaders_change_no_mask(tmp_path: Path) -> None:
    split, made = load_boxes(shapes(tmp_path), "train", None, masks=True), []
    for loaders in (0, 1):
        prepare = Preparer((0.0,) * 3, (1.0,) * 3, "scale_crop_flip_colour", 5, CPU)
        feed = BoxFeed(split, prepare, (48, 48), (0.5,) * 3, loaders)
        requests = [Request(torch.tensor([0, 1]), "augment", index) for index in range(2)]
        made.append([(one.inputs, one.labels, one.masks) for one, _ in feed.stream(requests)])
    for here, there in zip(*made, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))  # type: ignore[arg-type]


# Scores.


def drawn_masks(images: int, seed: int) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """What a network might find, the labelled boxes with crowds among them, and their masks: ellipses of 48 × 64 pixels."""
    draws = np.random.default_rng(seed)
    size = np.array([48, 64])

    def ellipse(middle: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.bool_]:
        rows, columns = np.mgrid[0:48, 0:64]
        return np.asarray(((rows - middle[0]) / radius[0]) ** 2 + ((columns - middle[1]) / radius[1]) ** 2 <= 1)

    labels, masks = torch.full((images, 5, 7), NO_BOX), torch.zeros(images, 5, 48, 64, dtype=torch.bool)
    found = []
    for image in range(images):
        own: list[tuple[int, float, NDArray[np.bool_]]] = []
        for place in range(draws.integers(0, 6)):
            middle, radius, label = (
                draws.uniform(0.1, 0.9, 2) * size,
                draws.uniform(2, 30, 2),
                int(draws.integers(1, 4)),
            )
            mask = ellipse(middle, radius)
            left, top, right, bottom = around(torch.from_numpy(mask))
            masks[image, place] = torch.from_numpy(mask)
            labels[image, place] = torch.tensor([label, left, top, right, bottom, mask.sum(), draws.random() < 0.2])
            for _ in range(draws.integers(0, 4)):
                near = ellipse(middle + draws.normal(0, 3, 2), radius * draws.uniform(0.7, 1.3, 2))
                own += [(label if draws.random() < 0.8 else 1, draws.random(), near)] * bool(near.any())
        found.append(
            {
                "labels": torch.tensor([one[0] for one in own], dtype=torch.int64),
                "scores": torch.tensor([one[1] for one in own]).float(),
                "boxes": torch.tensor([around(torch.from_numpy(one[2])) for one in own]).view(-1, 4).float(),
                "masks": torch.from_numpy(np.stack([one[2] for one in own] or [np.zeros((48, 64), bool)]))[: len(own)],
            }
        )
    return found, labels, masks


def their_score(found: list[dict[str, Tensor]], labels: Tensor, masks: Tensor) -> list[float]:
    """COCO's own twelve numbers of masks, by pycocotools from the masks themselves."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def runs(mask: Tensor) -> Any:
        return pycocotools.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    annotations, results = list[dict[str, Any]](), list[dict[str, Any]]()
    for image in range(len(labels)):
        for row, mask in zip(labels[image], masks[image], strict=True):
            if row[CLASS] != NO_BOX:
                left, top, right, bottom = row[CORNERS].tolist()
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": image + 1, "category_id": int(row[0]), "area": float(row[5]),
                     "iscrowd": int(row[6]), "bbox": [left, top, right - left, bottom - top], "segmentation": runs(mask)}
                )  # fmt: skip
        one = found[image]
        for label, score, mask in zip(one["labels"], one["scores"], one["masks"], strict=True):
            results.append(
                {"image_id": image + 1, "category_id": int(label), "score": score.item(), "segmentation": runs(mask)}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image + 1, "height": 48, "width": 64} for image in range(len(labels))],
            "annotations": annotations,
            "categories": [{"id": k} for k in range(1, 4)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def sorted_by_score(found: dict[str, Tensor]) -> dict[str, Tensor]:
    order = found["scores"].sort(descending=True, stable=True).indices
    return {name: one[order] for name, one in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_mask_ap_is_that_of_pycocotools(seed: int) -> None:
    found, labels, masks = drawn_masks(25, seed)
    found = [sorted_by_score(one) for one in found]
    theirs = their_score(found, labels, masks)
    detections = torch.stack([_rows(one) for one in found])
    pixels = torch.stack(
        [
            pixels_of(map(Window.of, one["masks"]), map(Window.of, own), (MOST, labels.shape[1]))
            for one, own in zip(found, masks, strict=True)
        ]
    )
    answers = torch.cat([torch.cat([detections, labels], dim=1), pixels], dim=2)
    task = Detection(Network("maskrcnn_resnet18_96_fpn", 4), NAMES)
    score = task.score(answers, labels, torch.zeros(25))
    assert score.masks is not None
    assert score.boxes is not None
    assert 0.05 < theirs[0] < 0.95
    ours = [score.masks.ap, score.masks.ap50, score.masks.ap75, score.masks.ap_small, score.masks.ap_medium]
    assert ours == pytest.approx(theirs[:5], abs=1e-9)
    assert score.masks.ap_large == (None if theirs[5] < 0 else pytest.approx(theirs[5]))
    assert score.boxes.ap != score.masks.ap
    assert score.accuracy == score.boxes.ap
    assert score.boxes == box_score(answers[:, :MOST, :7], labels, NAMES)


@pytest.mark.parametrize("package", list(evaluators()))
def test_a_perfect_mask_is_a_perfect_score(package: str) -> None:
    _, labels, masks = drawn_masks(6, 11)
    labels[..., 6] = 0
    perfect = labels.clone()
    perfect[..., 5] = 0.9
    flat = masks.flatten(2).float()
    overlaps = Overlaps(flat.sum(dim=2), flat.sum(dim=2), flat @ flat.transpose(1, 2))
    found = box_score(perfect, labels, NAMES, package, overlaps)
    assert (found.ap, found.ap50, found.ap75) == (1, 1, 1)
    nothing = box_score(torch.full_like(perfect, NO_BOX), labels, NAMES, package, overlaps)
    assert nothing.ap == 0


def test_windows_hold_what_torchvision_pastes() -> None:
    draws = torch.Generator().manual_seed(4)
    for size in ((40, 60), (7, 300), (1, 1)):
        limits = torch.tensor([size[1], size[0]] * 2)
        corners = (torch.rand(60, 4, generator=draws) * 1.4 - 0.2).clamp(0, 1) * limits
        corners = torch.cat([corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])], dim=1)
        corners[:3] = torch.cat([torch.zeros(3, 2), limits[2:].expand(3, -1)], dim=1)  # the whole image
        corners[3:6] = limits  # a corner of it, without an area
        found = {"boxes": corners, "masks": torch.rand(60, 1, 28, 28, generator=draws)}
        theirs = paste_masks_in_image(found["masks"], found["boxes"], size)[:, 0] > INSIDE
        ours = torch.stack([one.whole(size) for one in windows(found, size)])
        assert torch.equal(ours, theirs)
        assert theirs.any()
        assert all(one.inside.numel() == 0 or one.inside.any(dim=0)[[0, -1]].all() for one in windows(found, size))
    assert list(windows({"boxes": torch.zeros(0, 4), "masks": torch.zeros(0, 1, 28, 28)}, (5, 5))) == []
    beyond = {
        "boxes": torch.tensor([[70.0, 5, 80, 15], [5, 45, 20, 52], [-30, -9, -3, -2]]),
        "masks": torch.ones(3, 1, 28, 28),
    }
    assert [one.inside.numel() for one in windows(beyond, (40, 60))] == [0, 0, 0]
    unsure = {"boxes": torch.tensor([[0.0, 0, 60, 40]]), "masks": torch.full((1, 1, 28, 28), 0.1)}
    assert [one.inside.numel() for one in windows(unsure, (40, 60))] == [0], "only what is inside is kept"


def test_masks_by_their_windows_are_those_that_the_network_pastes() -> None:
    torch.manual_seed(0)
    network = architectures.initialized(Network("maskrcnn_resnet18_96_fpn", 4)).eval()
    images = torch.rand(1, 3, 70, 90)
    with torch.no_grad():
        (theirs,), (ours,) = found_by(network, images), found_by(network, images, pasted=False)
    assert len(theirs["masks"]) > 0
    assert torch.equal(theirs["boxes"], ours["boxes"])
    parts = list(windows(ours, (70, 90)))
    masks = torch.stack([one.whole((70, 90)) for one in parts])
    assert torch.equal(masks, theirs["masks"][:, 0] > INSIDE)
    labelled = torch.rand(3, 70, 90) > 0.7
    labelled[2] = False
    pixels = pixels_of(parts, map(Window.of, labelled), (100, 4))
    both = masks.flatten(1).float() @ labelled.flatten(1).float().T
    assert torch.equal(pixels[: len(masks), 1:4], both)
    assert torch.equal(pixels[: len(masks), 0], masks.flatten(1).sum(dim=1).float())
    assert torch.equal(pixels[100:103, 0], labelled.flatten(1).sum(dim=1).float())
    assert not pixels[:, 4].any()
