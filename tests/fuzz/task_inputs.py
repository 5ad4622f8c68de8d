"""Tables of targets and attributes, and masks, that are no labels of their images, in archives that are right."""

import io

import numpy as np
from PIL import Image

from tests.fuzz.archive_inputs import png
from tests.fuzz.inputs import ATTRIBUTES, NAMES, TARGETS, Input, Source, attributed, masked, pngs, targeted, zipped

CELLS = (
    b"", b"nan", b"-inf", b"1e31", b"-1e400", b"yes", b"\x00", b"\xff", b"x" * 200_000, b'"1', b"1,1", b"=1", b"0x1f", b"1_000",
    "١".encode(), b"1 000", b"1.2.3", b"--1",
)  # fmt: skip


def _targets(source: Source) -> bytes:
    header, *lines = TARGETS.splitlines()
    table = source.draws.choice(
        (b"", b"\n", header, b"image\n", TARGETS.replace(b"image", b"picture"), TARGETS.replace(b"height", b"age"),
         TARGETS + lines[0] + b"\n", TARGETS.replace(b",31,", b"," + source.draws.choice(CELLS) + b","),
         TARGETS.replace(b",31,", b"," + source.draws.choice(CELLS) + b","), TARGETS.replace(lines[1] + b"\n", b""),
         TARGETS + b"train/none.png,1,0\n", TARGETS.decode().encode("utf-16"), TARGETS.replace(b"height", b"=1+1"),
         TARGETS.replace(b"height", b" "), TARGETS.replace(b"height", b"\x1b[2J"), TARGETS.replace(b"height", b"\xff\xfe"),
         TARGETS.replace(b"height", b"x" * 300), TARGETS.replace(b"height", b"a\x00b"),
         TARGETS.replace(b"height", b'"hei\nght"'), b"image," + b",".join(b"t%d" % i for i in range(10_000)),
         source.draws.randbytes(300), b'"' * 100_001, TARGETS.replace(b",", b";"), TARGETS.replace(b"train/", b"../train/"))
    )  # fmt: skip
    return zipped(targeted(table))


def _attributes(source: Source) -> bytes:
    right = ATTRIBUTES
    header, *lines = right.splitlines()
    cell = source.draws.choice(
        (b"\x00", b"\xff", b"x" * 200_000, b'"1', b"1,1", b"=1+1", b"\x1b[2J", b'"a\nb"', b"x" * 252)
    )
    table = source.draws.choice(
        (b"", b"\n", header, b"image\n", right.replace(b"image", b"picture"), right.replace(b"size", b"colour"),
         right + lines[0] + b"\n", right.replace(b",red,", b"," + cell + b","), right.replace(b",red,", b"," + cell + b","),
         right.replace(lines[1] + b"\n", b""), right + b"train/none.png,red,small\n", right.decode().encode("utf-16"),
         right.replace(b"size", b"=1+1"), right.replace(b"size", b"a=b"), right.replace(b"size", b" "),
         right.replace(b"size", b"\x1b[2J"), right.replace(b"size", b"x" * 300), right.replace(b"size", b"a\x00b"),
         right.replace(b",small", b","), right.replace(b"large", b"small"), right.replace(b"blue,", b","),
         right.replace(b"train/0.png,red", b"train/0.png,green"), b"image," + b",".join(b"t%d" % i for i in range(10_000)),
         source.draws.randbytes(300), b'"' * 100_001, right.replace(b",", b";"), right.replace(b"train/", b"../train/"),
         header + b"\n" + b"\n".join(b"train/%d.png,c%d,s%d" % (i, i, i) for i in range(20_000)))
    )  # fmt: skip
    return zipped(attributed(table))


def _grey(values: np.ndarray, mode: str | None = None) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(values)
    (image if mode is None else image.convert(mode)).save(out, "PNG")
    return out.getvalue()


def _mask(source: Source) -> bytes:
    """Return a file that is no mask of an image of 16 × 16 pixels with two classes."""
    right = masked()["train/masks/0.png"]
    labels = np.full((16, 16), source.draws.choice((2, 17, 254)), np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(labels).save(jpeg, "JPEG")
    return source.draws.choice(
        (b"", b"no mask", right[: source.draws.randrange(1, len(right) - 8)], _grey(labels), jpeg.getvalue(),
         _grey(np.zeros((16, 15), np.uint8)), _grey(np.zeros((1, 1), np.uint8)), _grey(np.full((16, 16), 255, np.uint8)),
         _grey(np.zeros((16, 16, 3), np.uint8)), _grey(np.zeros((16, 16, 4), np.uint8)), _grey(labels, "P"),
         _grey(np.full((16, 16), source.draws.choice((300, 65535)), np.uint16)), png(60_000, 60_000, (b"IDAT", b"")),
         png(2**31 - 1, 2**31 - 1), png(0, 5), png(16, 16), png(16, 16, (b"IDAT", b"garbage")),
         pngs()["train/a/0.png"], b"\x89PNG\r\n\x1a\n" + source.draws.randbytes(300))
    )  # fmt: skip


def _masks(source: Source) -> bytes:
    members = masked()
    if source.draws.random() < 0.6:
        return zipped(members | {source.draws.choice(("train/masks/1.png", "val/masks/3.png")): _mask(source)})
    right = members["train/masks/0.png"]
    names = source.draws.choice(
        (b"", b"ground\n", b"ground\nground\n", NAMES.decode().encode("utf-16"), b"ground\n\xff\xfe\n", b"ground\n=1+1\n",
         b"ground\n\x1b[2J\n", b"ground\n" + b"x" * 300, b"\n".join(b"c%d" % i for i in range(300)), b"ground\na\x00b\n")
    )  # fmt: skip
    return zipped(
        source.draws.choice(
            (
                members | {"classes.txt": names},
                members | {"classes.txt": names},
                {name: data for name, data in members.items() if name != "classes.txt"},
                {name: data for name, data in members.items() if name != "train/masks/1.png"},
                {name: data for name, data in members.items() if name != "train/images/1.png"},
                {name: data for name, data in members.items() if not name.startswith("train/")},
                members | {"train/masks/1.PNG": right},
                members | {"train/masks/1.tif": right},
                members | {"train/masks/9.png": right},
                members | {"other/classes.txt": NAMES},
            )
        )
    )


def target_input(source: Source) -> Input:
    return Input("target table", "regression", _targets(source))


def attribute_input(source: Source) -> Input:
    return Input("attribute table", "attributes", _attributes(source))


def mask_input(source: Source) -> Input:
    return Input("masks", "segmentation", _masks(source))
