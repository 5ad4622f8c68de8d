"""A folder with `model.safetensors` and `config.json`, as timm's `save_for_hf` and the Hugging Face hub have it, in an archive.

Both lie at the top, or together in one folder of it. Nothing else in the archive is read, least of all programs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wbar.errors import CorruptFile, InvalidArchive, UnsafePath
from wbar_averaging.zip_directory import InvalidZip, read_directory
from wbar_training.uploads.archives import archive_members
from wbar_training.uploads.limits import UploadLimits

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FILES = 1000  # in such an archive, at most
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and Zstandard begin


@dataclass(frozen=True)
class ModelFolder:
    """The two files. format: of the archive. weights: unpacked. config: None where there is none."""

    format: Literal["zip", "tar"]
    weights: Path
    config: bytes | None


def unpack(path: Path, head: bytes, scratch: Path, limits: UploadLimits) -> ModelFolder | None:
    """Return the folder in an archive; None where the file is no archive of one.

    head: the file's first bytes.
    scratch: a name that the weights are unpacked to.

    Raises CorruptFile for an archive that is damaged or holds several such folders, ContentTooLarge.
    """
    is_zip = head[:2] == b"PK"
    if not is_zip and head[257:262] != b"ustar" and not head.startswith(PACKED):
        return None
    if is_zip and not _names_weights(path, limits):
        return None  # torch's own archive; it is checked where it is read
    found: dict[str, bytes | None] = {}
    try:
        for name, content in archive_members(path, limits, _is_wanted):
            if name.rpartition("/")[2] == WEIGHTS:
                _write_once(scratch, content, found, name)
            else:
                found[name] = content
    except (InvalidArchive, UnsafePath) as error:
        if not found and not is_zip:
            return None
        raise CorruptFile(f"the archive cannot be read: {error.detail}") from None
    weights = next((name for name in found if name.endswith(WEIGHTS)), None)
    if weights is None:
        return None
    return ModelFolder("zip" if is_zip else "tar", scratch, found.get(weights.removesuffix(WEIGHTS) + CONFIG))


def _names_weights(path: Path, limits: UploadLimits) -> bool:
    try:
        return any(_is_wanted(entry.name) for entry in read_directory(path, limits.tensors + FILES))
    except InvalidZip:
        return False


def _is_wanted(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return file in (WEIGHTS, CONFIG) and "/" not in folder


def _write_once(scratch: Path, content: bytes, found: dict[str, bytes | None], name: str) -> None:
    if any(other.endswith(WEIGHTS) for other in found):
        raise CorruptFile(f"the archive has several {WEIGHTS}: upload one network at a time")
    scratch.write_bytes(content)
    found[name] = None
