"""A folder with weights and `config.json` in an archive, as timm's `save_for_hf` and transformers' `save_pretrained` have it.

    model.safetensors                                       or, in parts, model-00001-of-00002.safetensors, …
    config.json                                             with model.safetensors.index.json, which says what lies where
    preprocessor_config.json

or a LoRA adapter, as PEFT has it: adapter_model.safetensors and adapter_config.json. All lie at the top, or together in one
folder of it. For a merge, `unpack_beside` takes what else has one of some names; programs are never read.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wbar.errors import ContentTooLarge, CorruptFile, InvalidArchive, UnsafePath
from wbar_averaging import InvalidSafetensors
from wbar_averaging.lora import CONFIG as ADAPTER_CONFIG
from wbar_averaging.lora import WEIGHTS as ADAPTER_WEIGHTS
from wbar_averaging.quoting import quoted
from wbar_averaging.safetensors_file import parse_object
from wbar_averaging.zip_directory import InvalidZip, read_directory
from wbar_training.uploads.archives import streamed_members
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.members import Member

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
PREPROCESSOR = "preprocessor_config.json"
PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
TEXTS = (CONFIG, INDEX, PREPROCESSOR, ADAPTER_CONFIG)
FILES = 1000  # in such an archive, at most
BESIDE_BYTES = 64 * 1024 * 1024  # of a tokenizer, at most; those of large vocabularies have some tens of millions
ALL_BESIDE = 4 * BESIDE_BYTES  # of all files that may lie beside the weights: which do is known at the archive's end
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and Zstandard begin


@dataclass(frozen=True)
class ModelFolder:
    """The files of a folder.

    format: of the archive.
    weights: unpacked, by name: one file, or its parts.
    parts: of weights in parts, the name of the file that each tensor is in.
    config, preprocessor, adapter: the configurations; None where there is none.
    """

    format: Literal["zip", "tar"]
    weights: Mapping[str, Path]
    parts: Mapping[str, str] = field(default_factory=dict)
    config: bytes | None = None
    preprocessor: bytes | None = None
    adapter: bytes | None = None

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return sum(path.stat().st_size for path in self.weights.values())

    def remove(self) -> None:
        """Delete the unpacked weights."""
        for path in self.weights.values():
            path.unlink(missing_ok=True)


def unpack(path: Path, head: bytes, scratch: Path, limits: UploadLimits) -> ModelFolder | None:
    """Return the folder in an archive; None where the file is no archive of one.

    head: the file's first bytes.
    scratch: a name that the weights are unpacked to.

    Raises CorruptFile for an archive that is damaged, holds several such folders or lacks a part; UnsafePath for a part that
    lies elsewhere; ContentTooLarge.
    """
    is_zip = head[:2] == b"PK"
    if not is_zip and head[257:262] != b"ustar" and not head.startswith(PACKED):
        return None
    if is_zip and not _names_weights(path, limits):
        return None  # torch's own archive; it is checked where it is read
    texts: dict[str, bytes] = {}
    weights: dict[str, Path] = {}
    is_folder = is_zip
    try:
        try:
            for member in streamed_members(path, limits, _is_wanted):
                is_folder = True
                _check_member(member, [*texts, *weights], limits)
                if _is_weights(member.name.rpartition("/")[2]):
                    weights[member.name] = scratch.with_name(f"{scratch.name}-{len(weights)}")
                    with open(weights[member.name], "wb") as file:
                        for piece in member.pieces:
                            file.write(piece)
                else:
                    texts[member.name] = b"".join(member.pieces)
        except (InvalidArchive, UnsafePath) as error:
            if not is_folder and not isinstance(error, UnsafePath):
                return None
            raise CorruptFile(f"the archive cannot be read: {error.detail}") from None
        return _folder("zip" if is_zip else "tar", texts, weights)
    except BaseException:
        _remove(weights)
        raise


def unpack_beside(
    path: Path, names: Collection[str], folder: Path, limits: UploadLimits, adapter: bool = False
) -> None:
    """Write the files of these names to `folder` that lie beside the weights in an archive: those that `unpack` takes.

    adapter: whether it takes an adapter's, and not a whole network's.

    Raises InvalidArchive, UnsafePath or ContentTooLarge.
    """
    places: set[str] = set()

    def is_wanted(name: str) -> bool:
        place, _, file = name.rpartition("/")
        if file == ADAPTER_WEIGHTS if adapter else file == INDEX or (_is_weights(file) and file != ADAPTER_WEIGHTS):
            places.add(place)
        return file in names and "/" not in place

    found: dict[str, bytes | int] = {}  # of files that are too large their size: they may lie elsewhere
    total = 0
    for member in streamed_members(path, limits, is_wanted):
        if member.size > BESIDE_BYTES:
            found[member.name] = member.size
            continue
        found[member.name] = b"".join(member.pieces)
        total += member.size
        if total > ALL_BESIDE:
            raise ContentTooLarge(
                f"the archive has more than {ALL_BESIDE} bytes of configurations and tokenizers, up to {quoted(member.name)}: "
                "pack one network's folder"
            )
    for name, kept in found.items():
        place, _, file = name.rpartition("/")
        if place not in places:
            continue
        if isinstance(kept, int):
            raise ContentTooLarge(f"{quoted(name)} has {kept} bytes, more than the limit of {BESIDE_BYTES}")
        (folder / file).write_bytes(kept)


def _check_member(member: Member, before: list[str], limits: UploadLimits) -> None:
    """Raise CorruptFile or ContentTooLarge for what no folder of one network has, before it is read."""
    name = member.name
    folder, _, file = name.rpartition("/")
    if len(before) >= FILES:
        raise CorruptFile(f"the archive has more than {FILES} configurations and weights: upload one network at a time")
    if not _is_weights(file):
        if member.size > limits.header_bytes:
            raise ContentTooLarge(
                f"{quoted(name)} has {member.size} bytes, more than the limit of {limits.header_bytes}"
            )
        return
    if file == ADAPTER_WEIGHTS:
        return  # beside a whole network it is left out
    kept = [one for one in before if _is_weights(one.rpartition("/")[2]) and not one.endswith(ADAPTER_WEIGHTS)]
    other = next((one for one in kept if one.rpartition("/")[0] != folder), None)
    if other is not None:
        raise CorruptFile(
            f"the archive has several networks' weights, {quoted(other)} and {quoted(name)}: upload one network at a time"
        )


def _folder(kind: Literal["zip", "tar"], texts: dict[str, bytes], weights: dict[str, Path]) -> ModelFolder | None:
    indexes = [name for name in texts if name.rpartition("/")[2] == INDEX]
    wholes = [name for name in weights if name.rpartition("/")[2] == WEIGHTS]
    if not indexes and not wholes and all(name.rpartition("/")[2] == ADAPTER_WEIGHTS for name in weights):
        wholes = list(weights)
    if len(indexes) + len(wholes) > 1:
        raise CorruptFile(
            f"the archive has several networks' weights, {quoted((indexes + wholes)[0])} and {quoted((indexes + wholes)[1])}: "
            "upload one network at a time"
        )
    if not indexes and not wholes:
        if weights:
            raise CorruptFile(f"the archive has parts of weights, and no {INDEX} that says what lies in them")
        for config, lacking in ((CONFIG, WEIGHTS), (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
            if any(name.rpartition("/")[2] == config for name in texts):
                raise CorruptFile(
                    f"the archive has {config} and no {lacking}: save the network with save_pretrained (safetensors; pickled "
                    "weights of a folder are not read)"
                )
        return None
    found = (indexes or wholes)[0]
    folder, _, file = found.rpartition("/")
    place = f"{folder}/" if folder else ""
    if file == ADAPTER_WEIGHTS:
        if place + ADAPTER_CONFIG not in texts:
            raise CorruptFile(f"{quoted(found)} has no {ADAPTER_CONFIG} beside it, which says what an adapter adds")
        return ModelFolder(kind, {file: weights[found]}, adapter=texts[place + ADAPTER_CONFIG])
    parts = _parts(texts[found]) if indexes else {}
    wanted = sorted(set(parts.values())) if indexes else [WEIGHTS]
    missing = [name for name in wanted if place + name not in weights]
    if missing:
        raise CorruptFile(f"{INDEX} names {quoted(missing[0])}, which is not in the archive")
    apart = next((name for name in texts if name.rpartition("/")[2] == CONFIG), None)
    if apart is not None and place + CONFIG not in texts:
        raise CorruptFile(f"{quoted(apart)} is not beside {quoted(found)}: put both into one folder")
    kept = {name: weights.pop(place + name) for name in wanted}
    _remove(weights)
    return ModelFolder(kind, kept, parts, texts.get(place + CONFIG), texts.get(place + PREPROCESSOR))


def _parts(raw: bytes) -> dict[str, str]:
    """Return the file of every tensor. Raises CorruptFile; UnsafePath for a file that may lie outside the folder."""
    try:
        named: Any = parse_object(raw, INDEX).get("weight_map")
    except InvalidSafetensors as error:
        raise CorruptFile(str(error)) from None
    if not isinstance(named, dict) or not named or not all(isinstance(part, str) for part in named.values()):
        raise CorruptFile(f"{INDEX} has no `weight_map` of tensors' names and files")
    for tensor, part in named.items():
        if "/" in part or "\\" in part:
            raise UnsafePath(f"{INDEX} places {quoted(tensor)} in {quoted(part)}: parts lie beside it")
        if not PART.fullmatch(part):
            raise CorruptFile(
                f"{INDEX} places {quoted(tensor)} in {quoted(part)}: parts are named model-00001-of-00002.safetensors"
            )
    return named


def _remove(weights: dict[str, Path]) -> None:
    for path in weights.values():
        path.unlink(missing_ok=True)


def _names_weights(path: Path, limits: UploadLimits) -> bool:
    try:
        entries = read_directory(path, limits.tensors + FILES)
        return any(_is_wanted(entry.name.replace("\\", "/")) for entry in entries)
    except InvalidZip:
        return False


def _is_weights(file: str) -> bool:
    return file in (WEIGHTS, ADAPTER_WEIGHTS) or PART.fullmatch(file) is not None


def _is_wanted(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return (file in TEXTS or _is_weights(file)) and "/" not in folder
