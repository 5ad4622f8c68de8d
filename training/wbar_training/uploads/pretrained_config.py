"""What came with a checkpoint about its network and its images: timm's `config.json`, or metadata of the safetensors file.

    config.json      {"architecture": …, "model_args": {…}, "label_names": […],
                      "pretrained_cfg": {"mean", "std", "input_size", "crop_pct", …}}
    metadata         `config` with the same as JSON; or `architecture`, and `pretrained_cfg` as JSON; or `wbar.architecture`
                     and `wbar.classes`

They are data: names are looked up among those that are known, numbers are checked, and nothing else is read. The name is
believed where the tensors are that network's.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from wbar.errors import ArchitectureMismatch, CorruptFile
from wbar.spec import Network, PretrainedConfig
from wbar_averaging import InvalidSafetensors
from wbar_averaging.quoting import quoted
from wbar_averaging.safetensors_file import parse_object

LONGEST = 1024 * 1024  # bytes of a configuration
BOM = b"\xef\xbb\xbf"  # what some editors put before UTF-8
PARTS = 5000  # of one: names of many thousand classes are in it
LONGEST_NAME = 1000  # characters of a class's
SIDE = range(4, 4097)
LARGEST, LEAST_STD = 1e6, 1e-6  # of means and deviations
# Arguments that a name's network can be built with, whatever they are: read off the tensors, or without effect on them.
ARGUMENTS = ("num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "pretrained")


@dataclass(frozen=True)
class Said:
    """The facts that came with a checkpoint.

    architecture: as it was written.
    network: where a configuration says all about it, as transformers' does.
    adapter: whether one says that it is a LoRA adapter.
    """

    architecture: str | None = None
    pretrained: PretrainedConfig | None = None
    network: Network | None = None
    adapter: bool = False


NOTHING = Said()


def of_config(raw: bytes) -> Said:
    """Read a `config.json`. One that names no architecture of timm's says nothing.

    Raises CorruptFile for one that is no JSON object or holds values out of range, ArchitectureMismatch for arguments that
    make another network of the name's.
    """
    if len(raw) > LONGEST:
        raise CorruptFile(f"config.json has {len(raw)} bytes, more than the limit of {LONGEST}")
    try:
        config = parse_object(raw.removeprefix(BOM), "config.json", PARTS)
    except InvalidSafetensors as error:
        raise CorruptFile(str(error)) from None
    return _said(config)


def of_metadata(metadata: Mapping[str, str]) -> Said:
    """Read the metadata of a safetensors file. Raises what `of_config` does."""
    if "config" in metadata and metadata["config"].lstrip().startswith("{"):
        return of_config(metadata["config"].encode())
    config: dict[str, Any] = {"architecture": metadata.get("architecture", metadata.get("wbar.architecture"))}
    if "pretrained_cfg" in metadata:
        raw = metadata["pretrained_cfg"].encode()
        config["pretrained_cfg"] = _object(raw)
    if "wbar.classes" in metadata and not {"wbar.targets", "wbar.attributes"} & metadata.keys():
        with suppress(CorruptFile, ValueError):  # names that cannot be read are left out: nothing needs them
            config["label_names"] = _object(b'{"names": %b}' % metadata["wbar.classes"].encode()).get("names")
    return _said(config)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        return parse_object(raw[: LONGEST + 1], "pretrained_cfg", PARTS)
    except InvalidSafetensors as error:
        raise CorruptFile(f"the file's metadata: {error}") from None


def _said(config: Mapping[str, Any]) -> Said:
    name = config.get("architecture")
    architecture = name if isinstance(name, str) and 0 < len(name) <= 128 else None
    arguments = config.get("model_args")
    others = (
        sorted(key for key, value in arguments.items() if _matters(key, value)) if isinstance(arguments, dict) else []
    )
    if architecture and others:
        raise ArchitectureMismatch(
            f"config.json builds {quoted(architecture)} with {', '.join(map(quoted, others[:5]))}, which makes another network "
            "of it than the name's: networks are built by their names alone"
        )
    found, names = config.get("pretrained_cfg"), class_names(config.get("label_names"))
    pretrained = _pretrained(found) if isinstance(found, dict) else PretrainedConfig() if names else None
    if pretrained is not None and names is not None:
        pretrained = replace(pretrained, classes=names)
    return Said(architecture, pretrained)


def class_names(value: Any) -> tuple[str, ...] | None:
    """Return the names of a network's outputs, in order; None where a value cannot be that."""
    return tuple(value) if isinstance(value, list) and len(value) > 1 and all(map(is_name, value)) else None


def is_name(value: Any) -> bool:
    """Return whether a value can be the name of a class."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isprintable()


def _matters(argument: str, value: Any) -> bool:
    """Return whether an argument of timm's may make another network of a name without changing its tensors."""
    if argument == "global_pool":  # timm records it always; these have tensors of their own, or are the usual
        return value not in ("avg", "token", "map")
    return argument not in ARGUMENTS and value is not None


def _pretrained(config: Mapping[str, Any]) -> PretrainedConfig:
    size = _checked(config, "input_size", _is_size)
    mean, std = _checked(config, "mean", is_mean), _checked(config, "std", is_std)
    interpolation = config.get("interpolation")
    return PretrainedConfig(
        mean=tuple(map(float, mean)) if mean and std else None,
        std=tuple(map(float, std)) if mean and std else None,
        image_size=(size[1], size[2]) if size else None,
        crop_ratio=_checked(config, "crop_pct", lambda value: is_number(value) and 0 < value <= 1),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic") else None,
    )


def _checked(config: Mapping[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    value = config.get(name)
    if value is not None and not fits(value):
        raise CorruptFile(f"pretrained_cfg.{name} is {quoted(value)}, which it cannot be")
    return value


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number, and of a size that is meant."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST and isfinite(value)


def is_mean(value: Any) -> bool:
    """Return whether a value can be one number for each channel."""
    return isinstance(value, list) and 1 <= len(value) <= 4 and all(map(is_number, value))


def is_std(value: Any) -> bool:
    """Return whether a value can be the deviation of each channel."""
    return is_mean(value) and all(one >= LEAST_STD for one in value)


def _is_size(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
        and all(one in SIDE for one in value[1:])
    )
