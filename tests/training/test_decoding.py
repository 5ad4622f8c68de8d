"""Images of every kind are decoded to the pixels that a viewer shows, the same when packed and when trained on."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from wbar.errors import BrokenImage, ContentTooLarge
from wbar_training.data.decoding import ORIENTATION, decode, inspect
from wbar_training.data.packed import load_split
from wbar_training.uploads.dataset_archives import pack_folder
from wbar_training.uploads.image_checks import inspected, warnings_about
from wbar_training.uploads.limits import UploadLimits

RAMP = (np.arange(6 * 4 * 3, dtype=np.uint8) * 3).reshape(6, 4, 3)
PLENTY = 10**6


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    decoded = decode(data, channels)
    facts = inspect(data, PLENTY)
    assert tuple(decoded.shape) == (channels, facts.height, facts.width)
    return decoded.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(RAMP), kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(pixels(data), expected)
    assert inspect(data, PLENTY).turned is (orientation > 1)
    assert expected.shape[:2] == ((6, 4) if orientation < 5 else (4, 6))


def test_a_damaged_orientation_turns_nothing() -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        data = encoded(Image.fromarray(RAMP), "PNG", exif=exif)
        assert np.array_equal(pixels(data), RAMP)
        assert not inspect(data, PLENTY).turned


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([RAMP, np.full((6, 4), 255, np.uint8)])
    rgba[0, 0] = (0, 0, 0, 0)
    rgba[0, 1] = (200, 100, 0, 128)
    expected = RAMP.copy()
    expected[0, 0] = 255
    expected[0, 1] = [round((c * 128 + 255 * 127) / 255) for c in (200, 100, 0)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        data = encoded(Image.fromarray(rgba), kind, **options)
        assert np.abs(pixels(data).astype(int) - expected).max() <= 1
        assert inspect(data, PLENTY).composited
    assert pixels(encoded(Image.fromarray(rgba)))[0, 0].tolist() == [255, 255, 255]


def test_an_opaque_alpha_channel_changes_nothing_and_is_not_mentioned() -> None:
    data = encoded(Image.fromarray(np.dstack([RAMP, np.full((6, 4), 255, np.uint8)])))
    assert np.array_equal(pixels(data), RAMP)
    assert not inspect(data, PLENTY).composited


def test_grey_with_transparency() -> None:
    grey = np.array([[[10, 255], [20, 0]], [[30, 255], [40, 255]]], np.uint8)
    data = encoded(
        Image.fromarray(grey, "LA")
        if False
        else Image.merge("LA", [Image.fromarray(grey[..., i].copy()) for i in (0, 1)])
    )
    assert decode(data, 1)[0].tolist() == [[10, 255], [30, 40]]
    assert inspect(data, PLENTY).grey
    assert inspect(data, PLENTY).composited


@pytest.mark.parametrize("transparent", [None, 1, bytes([255, 0, 255])])
def test_palettes(transparent: int | bytes | None) -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 0])
    options = {} if transparent is None else {"transparency": transparent}
    data = encoded(image, "PNG", **options)
    green = [0, 255, 0] if transparent is None else [255, 255, 255]
    assert pixels(data).tolist() == [[[255, 0, 0], green], [[0, 0, 255], [255, 0, 0]]]
    assert inspect(data, PLENTY).composited is (transparent is not None)


def test_one_bit_and_cmyk_and_sixteen_bits() -> None:
    one_bit = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert decode(encoded(one_bit), 1)[0].tolist() == [[0, 255], [255, 0]]
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan: red
    assert np.abs(pixels(encoded(cmyk, "JPEG", quality=100)).astype(int) - [255, 0, 0]).max() <= 3
    deep = np.array([[0, 255], [256, 65535], [32768, 513]], np.uint16)
    assert decode(encoded(Image.fromarray(deep)), 1)[0].tolist() == [[0, 0], [1, 255], [128, 2]]
    assert pixels(encoded(Image.fromarray(deep)))[1, 1].tolist() == [255, 255, 255]


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Write a PNG by hand: what Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + (chunk(b"tRNS", extra) if extra else b"")
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))  # fmt: skip


def test_sixteen_bits_with_colours_and_with_transparency() -> None:
    colours = png(2, 1, 16, 2, b"\0" + b"\xff\xff\x80\x00\x00\xff" + b"\x01\x02\x03\x04\x05\x06")
    assert pixels(colours)[0].tolist() == [[255, 128, 0], [1, 3, 5]]
    keyed = png(2, 1, 16, 0, b"\0" + b"\x12\x34" + b"\x20\x00", extra=b"\x12\x34")
    assert decode(keyed, 1)[0].tolist() == [[255, 32]]
    assert inspect(keyed, PLENTY).composited
    alpha = png(2, 1, 16, 4, b"\0" + b"\x12\x34\x00\x00" + b"\x20\x00\xff\xff")
    assert decode(alpha, 1)[0].tolist() == [[255, 32]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.fromarray(np.full((6, 4, 3), value, np.uint8)) for value in (10, 200)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.abs(pixels(data).astype(int) - 10).max() == 0
    assert inspect(data, PLENTY).animated


def test_a_phones_second_picture_is_no_animation() -> None:
    first, second = Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    facts = inspect(data, PLENTY)
    assert (facts.format, facts.animated) == ("JPEG", False)


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    bomb = png(60_000, 60_000, 8, 0, b"")  # 3.6 gigapixels in a hundred bytes
    with pytest.raises(ContentTooLarge, match=r"'x.png' has 60000x60000 pixels, over the limit of 100000000"):
        inspected([("x.png", bomb)], UploadLimits())


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000)])
def test_a_line_is_no_picture(size: tuple[int, int]) -> None:
    with pytest.raises(BrokenImage, match="one side is more than 100 times the other"):
        inspected([("x.png", encoded(Image.new("L", size)))], UploadLimits())


def test_broken_images_are_named_without_addresses() -> None:
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")
    for data in (b"", b"nonsense", whole[: len(whole) // 2], encoded(Image.fromarray(RAMP))[:50]):
        with pytest.raises(BrokenImage, match=r"^'a.jpg' cannot be decoded") as caught:
            inspected([("a.jpg", data)], UploadLimits())
        assert "0x" not in caught.value.detail


def test_a_png_is_compared_with_its_checksums() -> None:
    """Pillow reads a picture whose data do not have their checksum, and one without its end."""
    whole = encoded(Image.fromarray(RAMP))
    changed = bytearray(whole)
    changed[whole.index(b"IEND") - 8] ^= 1  # the checksum of the pixels
    for data, message in ((bytes(changed), "'IDAT' at byte 33 does not have its checksum"), (whole[:-12], "no end")):
        with pytest.raises(BrokenImage, match=message):
            inspected([("a.png", data)], UploadLimits())
    assert inspected([("a.png", whole + b"more")], UploadLimits())


def test_the_dataset_says_what_was_changed_and_training_sees_the_same(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    clear = np.dstack([RAMP, np.zeros((6, 4), np.uint8)])
    frames = [Image.fromarray(np.full((6, 4, 3), value, np.uint8)) for value in (10, 200)]
    plain = encoded(Image.fromarray(RAMP))
    content = {
        "a/turned.png": encoded(Image.fromarray(RAMP), "PNG", exif=exif),
        "a/turned2.png": encoded(Image.fromarray(RAMP), "PNG", exif=exif),
        "a/clear.png": encoded(Image.fromarray(clear)),
        "b/moves.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "b/wrong.jpg": plain,
        "b/plain.png": plain,
    }
    for split in ("train", "val"):
        for name, data in content.items():
            path = tmp_path / "set" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    packed = pack_folder(tmp_path / "set", tmp_path / "out", UploadLimits())
    assert [warning.split(" (")[0] for warning in packed.warnings] == [
        "4 images were rotated or mirrored as their EXIF orientation says",
        "2 images were laid on white where they are transparent",
        "2 images were taken by their first frame: they are animated",
        "2 images were read by their content, which is of another format than their name says",
    ]
    assert (packed.height, packed.width) == (6, 4)  # the median of the upright ones
    split = load_split(tmp_path / "out", "train", (6, 4), None)
    assert torch.equal(split.images[0], torch.full((3, 6, 4), 255, dtype=torch.uint8))
    assert torch.equal(split.images[4].permute(1, 2, 0), torch.from_numpy(RAMP))
    assert warnings_about([], []) == []
