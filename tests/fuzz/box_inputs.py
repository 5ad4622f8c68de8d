"""COCO's JSON and Pascal VOC's XML that are no annotations of their images, in archives that are right."""

import json
from collections.abc import Callable
from typing import Any

from tests.fuzz.inputs import Input, Source, annotations, boxed, vocs, zipped

Change = Callable[[dict[str, Any]], object]
NUMBERS: tuple[object, ...] = (
    float("nan"),
    float("inf"),
    -1,
    0,
    1e308,
    10**400,
    2**63,
    -(2**63) - 1,
    "1",
    None,
    [],
    {},
    True,
)
TEXTS = ("", " ", "\x00", "\x1b[2J", "a\nb", "x" * 300, "\ud800", "../0.png", "/0.png", "train\\..\\0.png", 7, None)
MASKS: tuple[object, ...] = (
    [[1, 1, 9, 1]], [[1, 1, 9, 1, 9]], [[float("nan")] * 6], [[1e308] * 6], [[-9, 1, 9, 1, 9, 9]], [[1, 1, 9, 1, 9, "nine"]],
    [1, 1, 9, 1, 9, 9], "text", 7, True, {"size": [16, 16]}, {"size": [16, 16], "counts": []},
    {"size": [16, 16], "counts": [257]}, {"size": [16, 16], "counts": [-1, 257]}, {"size": [16, 16], "counts": [2**62] * 4},
    {"size": [16, 16], "counts": [256]}, {"size": [1, 256], "counts": [0, 256]}, {"size": [2**31, 2**31], "counts": [0, 1]},
    {"size": [16, 16], "counts": "o" * 1000}, {"size": [16, 16], "counts": "\ud7ff"}, {"size": [16, 16], "counts": "0" * 9},
    [[3, 3, 3, 3, 3, 3]], [[0, 0, 16, 16] * 20_000], [[[1, 1], [9, 1], [9, 9]]], {"size": "16", "counts": "1"},
)  # fmt: skip


def _faulty(source: Source) -> Change:
    """Return a change of valid annotations that leaves none."""
    draws = source.draws
    number, text = draws.choice(NUMBERS[:7]), draws.choice(TEXTS)
    changes: tuple[Change, ...] = (
        lambda d: d["annotations"][0].update(bbox=[2, 2, number, 4]),
        lambda d: d["annotations"][0].update(bbox=[number, 2, -4, 4]),
        lambda d: d["annotations"][0].update(bbox=[2, 2, 4]),
        lambda d: d["annotations"][0].update(bbox=[2, 2, 40, 4]),
        lambda d: d["annotations"][0].update(area=draws.choice((-1, float("nan"), float("inf"), "large"))),
        lambda d: d["annotations"][0].update(image_id=99),
        lambda d: d["annotations"][0].update(category_id=99),
        lambda d: d["annotations"][0].update(iscrowd=2),
        lambda d: d["annotations"][0].update(id=d["annotations"][1]["id"]),
        lambda d: d["annotations"][0].pop("bbox"),
        lambda d: d["images"][0].update(id=d["images"][1]["id"]),
        lambda d: d["images"][0].update(file_name=text),
        lambda d: d["images"][0].update(file_name=d["images"][1]["file_name"]),
        lambda d: d["images"][0].update(width=draws.choice((-1, 17, 10**400, 1.5))),
        lambda d: d.update(images=draws.choice(([], {}, None, [7], d["images"][:1]))),
        lambda d: d.update(annotations=draws.choice(({}, None, [7], "none"))),
        lambda d: d.update(categories=draws.choice(([], {}, None, [7], d["categories"] * 2))),
        lambda d: d["categories"][0].update(name=draws.choice(TEXTS[:7])),
        lambda d: d["categories"][0].update(name="background"),
        lambda d: d.pop(draws.choice(("images", "annotations", "categories"))),
    )
    return draws.choice(changes)


def _json(source: Source) -> bytes:
    """Return a file that is no COCO's JSON."""
    right = json.dumps(annotations("train")).encode()
    return source.draws.choice(
        (b"", b"[]", b"7", b"null", b"{", b"[" * 200_000, b'{"images":' * 50_000, right[: len(right) // 2], right + b"}",
         right.decode().encode("utf-16"), b"\xff" + right, right.replace(b"bbox", b"\xff\xfe"), source.draws.randbytes(300))
    )  # fmt: skip


def box_input(source: Source) -> Input:
    if source.draws.random() < 0.3:
        return Input("COCO's JSON", "detection", zipped(boxed() | {"train/annotations.json": _json(source)}))
    document = annotations("train")
    _faulty(source)(document)
    return Input(
        "annotations", "detection", zipped(boxed() | {"train/annotations.json": json.dumps(document).encode()})
    )


def box_mask_input(source: Source) -> Input:
    """A mask that is none leaves the boxes as they are."""
    documents = {}
    for split in ("train", "val"):
        document = annotations(split)
        for one in document["annotations"]:
            one["segmentation"] = [[1, 1, 9, 1, 9, 9]]
        documents[split] = document
    documents["train"]["annotations"][0]["segmentation"] = source.draws.choice(MASKS)
    members = {f"{split}/annotations.json": json.dumps(one).encode() for split, one in documents.items()}
    return Input("masks of boxes", "detection", zipped(boxed() | members), "numbers", "detection")


def voc_input(source: Source) -> Input:
    members, draws = vocs(), source.draws
    name = "VOC/Annotations/0.xml"
    right = members[name]
    bomb = b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>'
    tree = draws.choice(
        (b"", b"no XML", right[:-5], right.replace(b"9</xmax>", b"nan</xmax>"), right.replace(b"9</xmax>", b"1</xmax>"),
         right.replace(b"9</xmax>", b"900</xmax>"), right.replace(b"9</xmax>", b"</xmax>"), bomb + right,
         bomb + right.replace(b"figure", b"&y;"), b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'>" + right, b"<a>" * 100_000,
         right.replace(b"figure", b""), right.replace(b"figure", b"x" * 300), right.replace(b"figure", b"a&#10;b"),
         right.replace(b"<bndbox>", b"<box>").replace(b"</bndbox>", b"</box>"), draws.randbytes(300))
    )  # fmt: skip
    lists = "VOC/ImageSets/Main/train.txt"
    changes: tuple[dict[str, bytes | None], ...] = (
        {name: tree}, {name: tree}, {name: tree}, {name: None}, {lists: None}, {lists: b""}, {lists: b"0\n0\n1\n2\n"},
        {lists: b"0\n1\n9\n"}, {lists: b"../0\n1\n"}, {lists: b"\xff\xfe\n0\n"}, {lists: b"x" * 300_000},
        {"VOC/JPEGImages/0.jpg": b"another of that name"}, {"other/JPEGImages/0.png": members["VOC/JPEGImages/0.png"]},
        {"VOC/JPEGImages/0.png": None},
    )  # fmt: skip
    whole = {member: data for member, data in {**members, **draws.choice(changes)}.items() if data is not None}
    return Input("VOC's folders", "detection", zipped(whole))
