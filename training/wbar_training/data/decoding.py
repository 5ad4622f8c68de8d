"""One image file to pixels, the same when a dataset is packed and when a job trains on it.

Pixels are those that a viewer shows: turned as the EXIF orientation says, the first frame of an animation, 16 bits scaled
to 8, transparency laid on white. White, since pictures with transparency (icons, drawings, cut-out products) are made for
white pages; without a background the hidden colours under the transparency would show, which are mostly black, and
swallow dark lines.
"""

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")  # of Pillow's many decoders, some of which run other programs
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # what makes each orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L")

# Pillow's own limit is a warning at 89 million pixels and an error at twice that, for the whole process. An upload's
# pixels are counted against the operator's limit (`inspect`) before they are decoded.
Image.MAX_IMAGE_PIXELS = None


class TooManyPixels(ValueError):
    """The image has more pixels than are decoded."""


@dataclass(frozen=True)
class Inspected:
    """The facts about one image. height, width: in pixels, once it is upright.

    grey: it has no colours. turned: its EXIF orientation was applied. composited: pixels shine through and were laid on
    white. animated: it has more frames than the first. format: Pillow's name of it.
    """

    height: int
    width: int
    grey: bool
    turned: bool
    composited: bool
    animated: bool
    format: str


def inspect(data: bytes, max_pixels: int) -> Inspected:
    """Decode an image, and describe it. Raises TooManyPixels before decoding, or Pillow's error for a broken one."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise TooManyPixels(f"{image.width}x{image.height} pixels, over the limit of {max_pixels}")
        image.load()
        turn = _turn(image)
        sideways = turn in (
            Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
        )  # fmt: skip
        width, height = reversed(image.size) if sideways else image.size
        return Inspected(
            height=height,
            width=width,
            grey=is_grey(image),
            turned=turn is not None,
            composited=image.has_transparency_data and _lowest(_alpha(image)) < 255,
            # A phone's JPEG may carry a second picture (MPO: a depth map, a preview), which is no animation.
            animated=image.format != "MPO" and getattr(image, "n_frames", 1) > 1,
            format="JPEG" if image.format == "MPO" else str(image.format),
        )


def decode(data: bytes, channels: int) -> Tensor:
    """Decode one image to a (channels, H, W) uint8 tensor. Raises Pillow's error for a broken one."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        turn = _turn(image)
        flat = _flat(image, channels)
        pixels = np.array(flat if turn is None else flat.transpose(turn))
    return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1).copy())


def is_grey(image: Image.Image) -> bool:
    """Return whether an image has no colours, by its mode."""
    return image.mode in ("1", "L", "LA", "F", *SIXTEEN_BITS)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        return None  # damaged EXIF data turn nothing, as in every viewer
    return TURNS.get(orientation) if isinstance(orientation, int) else None


def _flat(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of 8 bits and one or three channels, without transparency."""
    mode = "L" if channels == 1 else "RGB"
    if not image.has_transparency_data:
        return _eight_bit(image).convert(mode)
    alpha = _alpha(image)
    if _lowest(alpha) == 255:
        return _opaque(image, mode)
    colours = _opaque(image, "RGB").convert("RGBA")
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB").convert(mode)


def _alpha(image: Image.Image) -> Image.Image:
    """Return the opacity of every pixel, 0 to 255."""
    if image.mode in SIXTEEN_BITS:
        opaque = np.asarray(image).astype(np.int64) != int(image.info["transparency"])
        return Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def _lowest(alpha: Image.Image) -> int:
    return int(np.asarray(alpha).min())


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Return the colours alone."""
    if image.mode in SIXTEEN_BITS:
        return _eight_bit(image).convert(mode)
    return image.convert("RGBA").convert(mode)


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode not in SIXTEEN_BITS:
        return image
    # Pillow clips 16-bit values at 255; scale them as every viewer does.
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
