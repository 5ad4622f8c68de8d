"""Every image of an upload is decoded once before it is packed; what was changed on the way is counted and said."""

import zlib
from collections.abc import Sequence
from pathlib import PurePosixPath

from PIL import ImageFile

from wbar.errors import BrokenImage, ContentTooLarge
from wbar_averaging.quoting import quoted, reason
from wbar_training.data.decoding import Inspected, TooManyPixels, inspect
from wbar_training.uploads.limits import UploadLimits

# A job scales the short side to its size: of an image a thousand times as long as high, some gigabytes.
MAX_RATIO = 100
PNG = b"\x89PNG\r\n\x1a\n"
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}


def inspected(images: Sequence[tuple[str, bytes]], limits: UploadLimits) -> list[Inspected]:
    """Decode every image, given by name and content, and describe it. Raises BrokenImage or ContentTooLarge naming one."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    found = []
    for name, data in images:
        try:
            check_png(data)
            image = inspect(data, limits.pixels)
        except TooManyPixels as error:
            raise ContentTooLarge(f"{quoted(name)} has {error}") from None
        except MemoryError:
            raise
        except Exception as error:
            # Decoders raise many types for a damaged file; all mean that this image is broken.
            raise BrokenImage(f"{quoted(name)} cannot be decoded: {reason(error)}") from None
        if max(image.height, image.width) > MAX_RATIO * min(image.height, image.width):
            raise BrokenImage(
                f"{quoted(name)} has {image.width}x{image.height} pixels: one side is more than {MAX_RATIO} times the other. "
                "Crop it, or leave it out"
            )
        found.append(image)
    return found


def check_png(data: bytes) -> None:
    """Raise ValueError for a PNG without its end, or with a chunk that is not what its checksum says: Pillow reads both."""
    if data[:8] != PNG:
        return
    at = len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise ValueError(f"its chunk {quoted(kind.decode('latin-1'))} at byte {at} does not have its checksum")
        if kind == b"IEND":
            return
        at = end
    raise ValueError(f"it has {len(data)} bytes and no end: it is cut off")


def warnings_about(names: Sequence[str], images: Sequence[Inspected]) -> list[str]:
    """Return a sentence for each change that was made to some of the images, with their number and the first one."""
    pairs = list(zip(names, images, strict=True))
    misnamed = [n for n, image in pairs if SUFFIXES.get(PurePosixPath(n).suffix.lower()) != image.format]
    cases = (
        ([n for n, image in pairs if image.turned], "rotated or mirrored as their EXIF orientation says"),
        ([n for n, image in pairs if image.composited], "laid on white where they are transparent"),
        ([n for n, image in pairs if image.animated], "taken by their first frame: they are animated"),
        (misnamed, "read by their content, which is of another format than their name says"),
    )
    return [f"{len(found)} images were {what} (the first: {quoted(found[0])})" for found, what in cases if found]
