"""What the metadata of a weights file say of its network: two networks may have the same tensors and compute different things.

An exported network's file carries its program, a transformers' one its configuration. Weights of two such networks have no
mean that means anything, whatever their names and shapes are.
"""

import base64
import binascii
import zlib
from collections.abc import Mapping
from contextlib import suppress

PROGRAM, CONFIG = "wbar.program", "wbar.config"
MOST_BYTES = 32 * 1024 * 1024  # of an unpacked program, which is what its reader takes


def difference(label: str, metadata: Mapping[str, str], other_label: str, other: Mapping[str, str]) -> str | None:
    """Return a sentence about two files whose metadata name different networks; None: they do not, or one says nothing.

    label, other_label: of the files, for the sentence.
    """
    for key, what in ((PROGRAM, "program"), (CONFIG, "configuration")):
        if key in metadata and key in other and metadata[key] != other[key]:
            here, there = (_digest(key, one[key]) for one in (metadata, other))
            if here != there:
                return (
                    f"{key}: the network's {what} has the sha256 {here[:12]}… in {label}, and {there[:12]}… in {other_label}: "
                    "the same tensors compute something else there; combine checkpoints of one network"
                )
    return None


def _digest(key: str, text: str) -> str:
    """Return the sha256 of what a value says: of a program when it is unpacked, since packers differ in the bytes they make."""
    import hashlib  # with OpenSSL it is megabytes, which a mean of files without such metadata does not need

    content = text.encode()
    if key == PROGRAM:
        with suppress(
            binascii.Error, zlib.error, ValueError
        ):  # of no program that anything reads the text is what it says
            content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MOST_BYTES)
    return hashlib.sha256(content).hexdigest()
