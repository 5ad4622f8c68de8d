"""Uploaded checkpoints: a state dict is found in the file and checked, its network is named, and its tensors are written.

`check` does all but the writing, since only some files need it: one of nothing but the tensors is its own stored form.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from safetensors import safe_open
from torch import Tensor

from wbar.checkpoints import CheckpointFormat
from wbar.errors import (
    ArchitectureMismatch,
    ContentTooLarge,
    CorruptFile,
)
from wbar.spec import Network, PretrainedConfig
from wbar_averaging import write_safetensors
from wbar_averaging.quoting import shown
from wbar_averaging.safetensors_file import SIZES, read_layout
from wbar_training.networks import recognition
from wbar_training.networks.differences import Shapes
from wbar_training.networks.programs import metadata_of
from wbar_training.networks.recognition import Recognized
from wbar_training.uploads import (
    adapter_folder,
    exported_program,
    model_folders,
    pretrained_config,
    transformers_folder,
    transformers_weights,
)
from wbar_training.uploads.exported_program import ReadProgram
from wbar_training.uploads.limits import UploadLimits
from wbar_training.uploads.program_trial import try_out
from wbar_training.uploads.state_dicts import read
from wbar_training.uploads.tensor_checks import check_claims, check_finite, check_kinds, check_names

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
COUNTERS = ("n_averaged",)  # AveragedModel's own count, no tensor of the network


@dataclass(frozen=True)
class ValidCheckpoint:
    """The facts about a valid checkpoint.

    parameters: how many numbers the network's parameters have, buffers not counted (of no known network: all tensors').
    network: None: of no known network.
    tensors: how many tensors the file has.
    prefix: the part of the uploaded names before the network's own.
    ambiguous_with: see `wbar.checkpoints.NetworkArchitecture`.
    pretrained: what came with it about its images.
    adapter: whether it is a LoRA adapter.
    """

    format: CheckpointFormat
    parameters: int
    tensors: int
    network: Network | None
    source: Literal["given", "detected"]
    prefix: str
    ambiguous_with: list[str] | None
    pretrained: PretrainedConfig | None = None
    adapter: bool = False


@dataclass(frozen=True)
class CheckedCheckpoint:
    """A valid checkpoint, and what is stored of it: a safetensors file of these tensors and metadata.

    as_stored: whether the file that was checked is such a file already.
    """

    facts: ValidCheckpoint
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    as_stored: bool = False


def validate(
    path: Path,
    architecture: str | None,
    num_classes: int | None,
    out: Path,
    limits: UploadLimits | None = None,
    tables: Path | None = None,
    any_network: bool = False,
) -> ValidCheckpoint:
    """Check the file, and write its tensors to `out` as safetensors. See `check`."""
    unpacked = out.with_name(f"{out.name}.unpacked")
    checked = check(path, architecture, num_classes, unpacked, limits, tables, any_network)
    write_safetensors(out, checked.tensors, checked.metadata)
    return checked.facts


def check(
    path: Path,
    architecture: str | None,
    num_classes: int | None,
    unpacked: Path,
    limits: UploadLimits | None = None,
    tables: Path | None = None,
    any_network: bool = False,
) -> CheckedCheckpoint:
    """Read the file, find its state dict, and name its network. The tensors may be the file's own bytes, mapped.

    architecture, num_classes: as the uploader gave them; None leaves them to the tensors. A given architecture is not
        ambiguous.
    unpacked: a name for what an archive unpacks to; nothing is left there.
    limits: None: the defaults.
    tables: the folder of `networks.timm_table`, where timm's networks are to be recognized, too.
    any_network: take tensors that fit no known network, too; they can be merged and not trained.

    Raises a class of wbar.errors.Rejected that says what is wrong with the file.
    """
    limits = limits or UploadLimits()
    exported = exported_program.find(path, limits, unpacked, lambda one: read(one, limits)[1])
    if exported is not None:
        return _check_exported(exported, path, architecture, num_classes, limits)
    kind, tensors, said, held = _read_with_config(path, unpacked, limits, any_network)
    if len(tensors) > limits.tensors:
        raise ContentTooLarge(f"the file has {len(tensors)} tensors, more than the limit of {limits.tensors}")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTERS)}
    check_names(tensors)
    check_kinds(tensors)
    check_claims(tensors, held)
    prefix = common_prefix(tensors)
    own = {name: name.removeprefix(prefix) for name in tensors}
    if said.network is not None:
        own = transformers_weights.own_names(said.network, own, architecture, num_classes)
    shapes = {own[name]: tuple(tensor.shape) for name, tensor in tensors.items()}
    found = _recognized(said, shapes, architecture, num_classes, tables, any_network)
    as_stored = kind == "safetensors" and _as_stored(path, tensors.keys(), limits)
    if found is None:
        check_finite(tensors)
        numbers = sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())
        facts = ValidCheckpoint(kind, numbers, len(tensors), None, "detected", prefix, None, adapter=said.adapter)
        return CheckedCheckpoint(facts, tensors, {}, as_stored)
    network = found.network
    if num_classes is not None and network.num_classes != num_classes:
        network = recognition.identify(network.name, shapes, num_classes, tables)
    check_finite(tensors)
    trained, floating = recognition.kinds(network, tables)
    _check_floating({name: tensors[name] for name in tensors if own[name] in floating})
    facts = ValidCheckpoint(
        format=kind,
        parameters=sum(t.numel() for name, t in tensors.items() if own[name] in trained),
        tensors=len(tensors),
        network=network,
        source="given" if architecture else "detected",
        prefix=prefix,
        ambiguous_with=found.ambiguous_with or None,
        pretrained=_of_network(said.pretrained, network),
    )
    return CheckedCheckpoint(facts, tensors, {}, as_stored)


def _recognized(
    said: pretrained_config.Said,
    shapes: Shapes,
    architecture: str | None,
    num_classes: int | None,
    tables: Path | None,
    any_network: bool,
) -> Recognized | None:
    """Return the network that the files beside the tensors, the uploader or the tensors say; None: of no known one."""
    if said.adapter:
        if architecture or num_classes is not None:
            raise ArchitectureMismatch(
                f"the archive is a LoRA adapter: leave out `architecture` and `num_classes` ({architecture or num_classes})"
            )
        return None
    if said.network is not None:
        transformers_weights.check(said.network, shapes)
        return Recognized(said.network, [])
    if architecture:
        return Recognized(recognition.identify(architecture, shapes, num_classes, tables), [])
    return (recognition.find if any_network else recognition.recognize)(shapes, said.architecture, tables)


def _check_floating(tensors: Mapping[str, Tensor]) -> None:
    """Raise ArchitectureMismatch for integers where the network has floating-point numbers."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ArchitectureMismatch(
                f"{shown(name)}: {tensor.dtype} in the checkpoint, a floating-point dtype expected"
            )


def _of_network(pretrained: PretrainedConfig | None, network: Network) -> PretrainedConfig | None:
    """Return what came with a network, without names of classes that are not those of its outputs."""
    if pretrained is None or pretrained.classes is None:
        return pretrained
    if network.architecture.outputs == "image" and len(pretrained.classes) == network.num_classes:
        return pretrained
    left = replace(pretrained, classes=None)
    return None if left == PretrainedConfig() else left


def _as_stored(path: Path, names: Set[str], limits: UploadLimits) -> bool:
    """Return whether a checked safetensors file has these tensors alone, each at a multiple of its numbers' size."""
    header, begin = read_layout(path, limits.header_bytes, limits.tensors)
    metadata = header.pop("__metadata__", {})
    return (
        header.keys() == names
        and metadata in ({}, {"format": "pt"})  # which torch's writers put there, and which says nothing
        and all((begin + one["data_offsets"][0]) % SIZES[one["dtype"]] == 0 for one in header.values())
    )


def _check_exported(
    exported: ReadProgram, path: Path, architecture: str | None, num_classes: int | None, limits: UploadLimits
) -> CheckedCheckpoint:
    """Check and try a network that came with its program, which is stored with its tensors."""
    program, tensors = exported.program, exported.tensors
    if architecture is not None or num_classes not in (None, program.classes):
        raise ArchitectureMismatch(
            f"the file has a program of its own, with {program.classes} outputs: leave out `architecture` and `num_classes` "
            f"({architecture or num_classes})"
        )
    if len(tensors) > limits.tensors:
        raise ContentTooLarge(f"the file has {len(tensors)} tensors, more than the limit of {limits.tensors}")
    check_names(tensors)
    check_kinds(tensors)
    check_claims(tensors, path.stat().st_size)
    check_finite(tensors)
    difference = program.differing({name: (tuple(one.shape), one.is_floating_point()) for name, one in tensors.items()})
    if difference:
        raise ArchitectureMismatch(difference)
    try_out(program, tensors)
    facts = ValidCheckpoint(
        format=exported.format,
        parameters=sum(tensors[name].numel() for name, one in program.state.items() if one.parameter),
        tensors=len(tensors),
        network=program.network,
        source="detected",
        prefix="",
        ambiguous_with=None,
    )
    return CheckedCheckpoint(facts, tensors, metadata_of(program))


def _read_with_config(
    path: Path, unpacked: Path, limits: UploadLimits, any_network: bool
) -> tuple[CheckpointFormat, dict[str, Tensor], pretrained_config.Said, int]:
    """Return the file's format, its flat state dict, what came with it, and the bytes of its weights.

    unpacked: a name for the weights of an archive.
    """
    with open(path, "rb") as file:
        head = file.read(512)
    folder = model_folders.unpack(path, head, unpacked, limits)
    if folder is None:
        kind, tensors = read(path, limits)
        said = _said_in(path, any_network) if kind == "safetensors" else pretrained_config.NOTHING
        return kind, tensors, said, path.stat().st_size
    try:
        tensors = {}
        for part, weights in folder.weights.items():
            kind, found = read(weights, limits)
            if kind != "safetensors":
                raise CorruptFile(
                    f"{part} is no safetensors file but what torch.save writes: save the network with save_pretrained, or "
                    "upload that file alone"
                )
            for name in found:
                if folder.parts and folder.parts.get(name) != part:
                    raise CorruptFile(f"{shown(name)} is in {part}, where the index of the parts does not place it")
            tensors |= found  # mapped: they stay readable where the file has no name any more
        if missing := sorted(folder.parts.keys() - tensors.keys()):
            raise CorruptFile(f"{shown(missing[0])} is not in {folder.parts[missing[0]]}, where the index places it")
        if folder.adapter is not None:
            said = adapter_folder.said_in(folder.adapter, any_network)
        elif folder.config is not None:
            said = transformers_folder.said_in(folder, any_network)
        else:
            said = _said_in(weights, any_network) if len(folder.weights) == 1 else pretrained_config.NOTHING
        return folder.format, tensors, said, folder.bytes
    finally:
        folder.remove()


def _said_in(path: Path, any_network: bool) -> pretrained_config.Said:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return transformers_folder.of_metadata(metadata, any_network) or pretrained_config.of_metadata(metadata)


def common_prefix(tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix that wrappers put before every name, in any order.

    They are `module.` (DataParallel), `_orig_mod.` (torch.compile), `model.` and `net.` (the attribute of a training
    class).
    """
    prefix = ""
    while True:
        shared = next((one for one in PREFIXES if all(name.startswith(prefix + one) for name in tensors)), None)
        if shared is None or not tensors:
            return prefix
        prefix += shared
