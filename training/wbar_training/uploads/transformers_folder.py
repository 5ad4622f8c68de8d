"""What a folder of transformers says: `config.json` about the network and its classes, `preprocessor_config.json` about images.

    x = (f·v − o − mean) / std   of pixel values v in 0..255, with f `rescale_factor` and, with `rescale_offset`, o = 1;
                                 without `do_rescale` f = 1 and o = 0

A job normalizes pixels v/255, so that its mean and deviation are mean + o and std over 255·f. Some classes of the library have
rules of their own, which no key tells: they are in `_normalization` and `_size`, by the class's name. Both files are data:
numbers and names are checked, and nothing else is read.
"""

from collections.abc import Mapping
from typing import Any

from wbar.errors import ArchitectureMismatch, CorruptFile, UnknownArchitecture
from wbar.recipe import Interpolation
from wbar.spec import PretrainedConfig
from wbar_averaging import InvalidSafetensors
from wbar_averaging.quoting import quoted
from wbar_averaging.safetensors_file import parse_object
from wbar_training.networks import transformers_models
from wbar_training.uploads.model_folders import ModelFolder
from wbar_training.uploads.pretrained_config import (
    BOM,
    LONGEST,
    NOTHING,
    PARTS,
    SIDE,
    Said,
    is_mean,
    is_name,
    is_number,
    is_std,
    of_config,
)

LONGEST_CONFIG = 8 * LONGEST  # bytes; names of twenty thousand classes, twice, have 1.6 MB
TELLING = ("model_type", "architectures", "auto_map")
PLACEHOLDER = "LABEL_{}"  # the library's own names of classes that have none
RESAMPLING: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def said_in(folder: ModelFolder, any_network: bool) -> Said:
    """Return what a folder's files say, transformers' or timm's.

    any_network: of a configuration that no network can be built from, it is left out.

    Raises what `said_by` and `pretrained_config.of_config` do.
    """
    assert folder.config is not None
    config = parsed(folder.config, "config.json")
    return _said(config, folder.preprocessor, any_network) if is_transformers(config) else of_config(folder.config)


def _said(config: Mapping[str, Any], preprocessor: bytes | None, any_network: bool) -> Said:
    try:
        return said_by(config, preprocessor)
    except (UnknownArchitecture, ArchitectureMismatch):
        if any_network:
            return NOTHING
        raise


def of_metadata(metadata: Mapping[str, str], any_network: bool) -> Said | None:
    """Return what the metadata of one of our own results says; None of other files.

    any_network: see `said_in`. Raises what `said_by` does.
    """
    if "wbar.config" not in metadata:
        return None
    config = parsed(metadata["wbar.config"].encode(), "wbar.config")
    count = metadata.get("wbar.num_classes", "")
    config["num_labels"] = int(count) if count.isascii() and count.isdecimal() and len(count) < 8 else None
    return _said(config | {"architectures": [metadata.get("wbar.architecture")]}, None, any_network)


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Return whether a `config.json` is transformers', and not timm's."""
    if config.get("model_type") == "timm_wrapper":
        return True  # which says what to upload in its place
    return not isinstance(config.get("architecture"), str) and any(config.get(key) for key in TELLING)


def parsed(raw: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object of one of the files. Raises CorruptFile."""
    if len(raw) > LONGEST_CONFIG:
        raise CorruptFile(f"{name} has {len(raw)} bytes, more than the limit of {LONGEST_CONFIG}")
    try:
        return parse_object(raw.removeprefix(BOM), name, PARTS)
    except InvalidSafetensors as error:
        raise CorruptFile(str(error)) from None


def said_by(config: Mapping[str, Any], preprocessor: bytes | None) -> Said:
    """Return what the two files say.

    preprocessor: the content of `preprocessor_config.json`; None: there is none.

    Raises CorruptFile for values that they cannot have, and what `transformers_models.network_of` raises.
    """
    images = {} if preprocessor is None else parsed(preprocessor, "preprocessor_config.json")
    size, crop_ratio = _size(images) or (None, None)
    network = transformers_models.network_of(config, size[0] if size and size[0] == size[1] else None)
    mean, std = _normalization(images)
    resample = images.get("resample")
    interpolation = RESAMPLING.get(resample) if type(resample) is int else None
    pretrained = PretrainedConfig(mean, std, size, crop_ratio, interpolation, _classes(config, network.num_classes))
    return Said(network.name, pretrained if pretrained != PretrainedConfig() else None, network)


def _classes(config: Mapping[str, Any], number: int) -> tuple[str, ...] | None:
    """Return the names of the outputs; None where they have none."""
    labels = config.get("id2label")
    if labels is None:
        return None
    names = [labels.get(str(output)) for output in range(number)] if isinstance(labels, dict) else []
    if len(names) != number or not all(is_name(name) for name in names):
        wrong = next((output for output, name in enumerate(names) if not is_name(name)), 0)
        raise CorruptFile(
            f"config.json: id2label has {number} classes and no name of output {wrong}: it maps the numbers from 0 to names"
        )
    placeholders = all(name == PLACEHOLDER.format(output) for output, name in enumerate(names))
    return None if placeholders else tuple(map(str, names))


def _normalization(images: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return mean and deviation of pixels in [0, 1]; None where the file does not say."""
    kind = _kind(images)
    if images.get("do_flip_channel_order", kind.startswith("MobileViT")):
        raise CorruptFile(
            "preprocessor_config.json: do_flip_channel_order: the network takes blue first, and jobs give it red first: "
            "reverse the inputs of its first layer, say false here, and upload it again"
        )
    mean, std = _checked(images, "image_mean", is_mean), _checked(images, "image_std", is_std)
    again = std if kind.startswith("EfficientNet") and images.get("include_top", True) else None
    if images.get("do_normalize", not kind.startswith("MobileViT")) is False:
        mean, std = [0.0] * len(again or [0.0]), [1.0] * len(again or [1.0])
    if std and again:
        std = [one * two for one, two in zip(std, again, strict=True)]  # the class divides a second time
    rescales = images.get("do_rescale", True) is not False
    if mean and rescales and images.get("rescale_offset"):
        mean = [one + 1 for one in mean]
    if not mean or not std or len(mean) != len(std):
        return None, None
    factor = _checked(images, "rescale_factor", lambda value: is_number(value) and value > 0) or 1 / 255
    scale = 255 * factor if rescales else 255.0
    mean, std = ([_divided(one, scale) for one in numbers] for numbers in (mean, std))
    if not is_mean(mean) or not is_std(std):
        raise CorruptFile(
            f"preprocessor_config.json: with rescale_factor {factor:g} pixels in [0, 1] have the mean {mean} and the deviation "
            f"{std}, which they cannot have"
        )
    return tuple(mean), tuple(std)


def _divided(value: float, scale: float) -> float:
    return float(value) if abs(scale - 1) < 1e-6 else value / scale  # 255 times a rounded 1/255 is 1


def _size(images: Mapping[str, Any]) -> tuple[tuple[int, int], float] | None:
    """Return (height, width) that the network takes, and the part of a held-out image's short side that is cut out."""
    if images.get("do_resize", True) is False:
        return None
    kind, resized = _kind(images), _sides(images, "size")
    cuts = images.get("do_center_crop", kind.startswith(("Levit", "PoolFormer")))
    cropped = _sides(images, "crop_size") if cuts else None
    if kind.startswith("Perceiver") and cropped and resized:  # cut out first, then resized
        return resized, min(1.0, min(resized) / min(cropped))
    size = cropped or resized
    if size is None:
        return None
    if kind.startswith("ConvNext") and min(size) < 384:  # cut out of the larger image that `crop_pct` says
        return size, _crop_pct(images, usual := 224 / 256) or usual  # null was the same to versions before
    if cropped is None or resized is None:
        return size, 1.0
    larger = 1.0
    if kind.startswith("PoolFormer"):
        larger = 1 / (_crop_pct(images, 0.9) or 1.0)
    elif kind.startswith("Levit") and "shortest_edge" in _as_object(images.get("size")):
        larger = 256 / 224
    return size, min(1.0, min(cropped) / (min(resized) * larger))


def _crop_pct(images: Mapping[str, Any], usual: float) -> float | None:
    """Return `crop_pct`; None where it is null, the class's own where it is not there."""
    share = images.get("crop_pct", usual)
    if share is not None and (not is_number(share) or not 0 < share <= 1):
        raise CorruptFile(f"preprocessor_config.json: crop_pct is {quoted(share)}, which it cannot be")
    return None if share is None else float(share)


def _as_object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _kind(images: Mapping[str, Any]) -> str:
    """Return the name of the class that prepares the images; "" where the file does not say."""
    kind = images.get("image_processor_type", images.get("feature_extractor_type"))
    return kind if isinstance(kind, str) else ""


def _sides(images: Mapping[str, Any], name: str) -> tuple[int, int] | None:
    value = images.get(name)
    if value is None:
        return None
    if isinstance(value, dict):
        short = value.get("shortest_edge")
        height, width = (value.get("height"), value.get("width")) if short is None else (short, short)
        if height is None and width is None:
            return None  # a rule that says no size, such as `longest_edge` alone
    else:
        height = width = value
    if type(height) is not int or type(width) is not int or height not in SIDE or width not in SIDE:
        raise CorruptFile(f"preprocessor_config.json: {name} is {quoted(value)}, which it cannot be")
    return height, width


def _checked(images: Mapping[str, Any], name: str, fits: Any) -> Any:
    value = images.get(name)
    if value is not None and not fits(value):
        raise CorruptFile(f"preprocessor_config.json: {name} is {quoted(value)}, which it cannot be")
    return value
