"""transformers' image classifiers: networks that a configuration builds, of the classes of the installed library alone.

The library is imported where a network of it is built, since that takes seconds. Its own registry of image classifiers says
which class a configuration is of; code that a configuration names is never looked for, and nothing is fetched: `Network.config`
holds all that decides the network. Names of tensors are those of the library's modules; files may have the older ones that the
library writes and reads (`own_names`).
"""

import importlib.util
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from wbar.catalog import Architecture
from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar.spec import Network, canonical
from wbar_averaging.quoting import quoted, reason
from wbar_training.networks.bounds import MOST_CLASSES, MOST_PIXELS
from wbar_training.networks.meta_device import Unfilled
from wbar_training.networks.stochastic_depth import no_stochastic_depth

# Model types whose networks are customarily trained by SGD or RMSProp; all others by AdamW.
SGD = ("bit", "efficientnet", "hgnet_v2", "mobilenet_v1", "mobilenet_v2", "pp_lcnet", "regnet", "resnet", "textnet")
USUAL_SIZE = 224  # pixels of a side, where neither configuration nor preprocessor says one
MIN_SIZE = 32
LARGEST = 10**7  # of the whole numbers in a configuration: vocabularies have 10⁵
DEEPEST = 20  # levels of a configuration: theirs have three
MOST_PARAMETERS = 4000  # tensors; ViT-H has 520. A network of so many takes 20 s to try out
INPUT = "pixel_values"
# What changes no network: names of classes, of formats and of programs. Names that begin with `_` are the library's own notes.
NOT_OF_THE_NETWORK = (
    "architectures", "attn_implementation", "dtype", "experts_implementation", "finetuning_task", "id2label", "label2id",
    "num_labels", "output_attentions", "output_hidden_states", "problem_type", "return_dict", "task_specific_params",
    "torch_dtype", "torchscript", "transformers_version", "use_cache",
)  # fmt: skip
QUANTIZED = ("quantization_config", "compression_config")
CODE = ("auto_map", "custom_pipelines")


class LogitsOnly:
    """Before one of the library's classes: the forward takes pixels, (N, channels, height, width), and gives the logits."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the logits, (N, outputs).

        Some networks keep tables that they compute at their first forward, of which training needs gradients later: where an
        evaluation is first, in inference mode, they are computed without it.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self.forward(pixel_values)
        logits: Tensor = super().forward(pixel_values=pixel_values).logits  # type: ignore[misc]  # of the library's class
        return logits

    def no_weight_decay(self) -> set[str]:
        """Return parts of names that weight decay leaves alone: networks whose outputs are position biases (Swin v2)."""
        return {"continuous_position_bias_mlp"}


def installed() -> str | None:
    """Return the library's version; None where it is not installed."""
    try:
        return version("transformers") if importlib.util.find_spec("transformers") else None
    except PackageNotFoundError:
        return None


@cache
def _registry() -> tuple[Mapping[str, Any], Mapping[str, tuple[str, ...]], Any]:
    """Import the library, offline; return its configuration classes and image classifiers' names by model type, and these."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"  # read when the library is imported
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = {
        kind: (classes,) if isinstance(classes, str) else tuple(classes)
        for kind, classes in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
    }
    return CONFIG_MAPPING, names, modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING


def network_of(config: Mapping[str, Any], usual_size: int | None = None) -> Network:
    """Return the network that a `config.json` describes, with a catalog entry of its own.

    usual_size: the side of images in pixels, where the configuration has none.

    Raises UnknownArchitecture where the library is not installed, does not know the model type, or has no image classifier of
    it, and for code of the folder's own; ArchitectureMismatch for a configuration that no network can be built from.
    """
    _refuse_code(config)
    if installed() is None:
        raise UnknownArchitecture(
            "config.json is of transformers, whose networks are known where it is installed: pip install 'wbar[transformers]'"
        )
    kind, name = _class_name(config)
    if any(config.get(key) for key in QUANTIZED):
        raise ArchitectureMismatch(
            "config.json says that the weights are quantized: upload float32, float16 or bfloat16"
        )
    kept = _of_the_network(config)
    network = Network(name, _num_labels(config), config=canonical(kept | {"model_type": kind}))
    made = _configuration(network)
    size, channels = _side(made), _value(made, "num_channels")
    network = Network(name, network.num_classes, channels if isinstance(channels, int) else 3, config=network.config)
    return _with_entry(network, kind, size or usual_size)


def entries() -> Iterator[Architecture]:
    """Yield the catalog's entries of the library's classes, by name, each as its own default configuration has it."""
    configurations, classifiers, _ = _registry()
    for name, kind in sorted((name, kind) for kind, names in classifiers.items() for name in names):
        try:
            config = json.loads(configurations[kind]().to_json_string(use_diff=False))
            yield network_of(config | {"model_type": kind, "architectures": [name]}).architecture
        except (ImportError, UnknownArchitecture, ArchitectureMismatch):
            continue  # no classifier of images, or it needs what is not installed


def _refuse_code(config: Mapping[str, Any]) -> None:
    parts: list[Any] = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if found := next((key for key in CODE if part.get(key)), None):
                raise UnknownArchitecture(
                    f"config.json names code to run ({found}: {quoted(json.dumps(part[found]))}), which is never done: "
                    "networks of the installed transformers' own classes can be fine-tuned"
                )
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


def _class_name(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model type, and the name of the classifier's class."""
    configurations, classifiers, _ = _registry()
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in configurations:
        alike = get_close_matches(str(kind), classifiers, n=3)
        similar = f" (similar: {', '.join(alike)})" if alike else ""
        raise UnknownArchitecture(
            f"config.json: model_type is {quoted(kind)}, which transformers {installed()} does not know{similar}"
        )
    names = classifiers.get(kind, ())
    said = config.get("architectures")
    wanted = said[0] if isinstance(said, list) and said else None
    if kind == "timm_wrapper":
        raise UnknownArchitecture(
            "config.json is of a network of timm's that transformers wraps: upload what timm's save_for_hf writes"
        )
    if not names or (wanted is not None and wanted not in names):
        of_kind = f"transformers {installed()} has {' and '.join(names) or 'none'} of this type"
        raise UnknownArchitecture(
            f"config.json: {quoted(wanted or kind)} (model_type {quoted(kind)}) is no image classifier: {of_kind}"
        )
    return kind, str(wanted or names[0])


def _of_the_network(value: Any, level: int = 0) -> Any:
    """Return a configuration without what changes no network, at all levels. Raises ArchitectureMismatch."""
    if level > DEEPEST:
        raise ArchitectureMismatch(f"config.json has more than {DEEPEST} levels")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ArchitectureMismatch(
            f"config.json has a number of {abs(value).bit_length()} bits: up to {LARGEST:,} can be taken"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ArchitectureMismatch(f"config.json has a number that is not finite: {value}")
    if isinstance(value, dict):
        return {
            key: _of_the_network(one, level + 1)
            for key, one in value.items()
            if key not in NOT_OF_THE_NETWORK and not key.startswith("_")
        }
    return [_of_the_network(one, level + 1) for one in value] if isinstance(value, list) else value


def _num_labels(config: Mapping[str, Any]) -> int:
    labels, count = config.get("id2label"), config.get("num_labels")
    number = len(labels) if isinstance(labels, dict) else 2 if count is None else count  # two are the library's default
    if type(number) is not int or not 0 < number <= MOST_CLASSES:
        raise ArchitectureMismatch(f"config.json: {quoted(number)} is no number of classes")
    return number


def _configuration(network: Network) -> Any:
    assert network.config is not None
    content = json.loads(network.config)
    configurations, _, _ = _registry()
    from transformers.utils import logging as library

    verbosity = library.get_verbosity()
    library.set_verbosity(logging.ERROR)  # or it would remark on vocabularies of text towers that are not built
    try:
        made = configurations[content["model_type"]].from_dict(content)
        made.num_labels = network.num_classes
    except Exception as error:  # the library's own checks raise almost any
        raise ArchitectureMismatch(f"config.json is none of {network.name}: {reason(error)}") from None
    finally:
        library.set_verbosity(verbosity)
    return made


def _value(config: Any, name: str) -> Any:
    """Return a value of a configuration, or of its vision tower's."""
    here = getattr(config, name, None)
    return getattr(getattr(config, "vision_config", None), name, None) if here is None else here


def _side(config: Any) -> int | None:
    size = _value(config, "image_size")
    if isinstance(size, dict):
        size = list(size.values())
    sides = (
        set(size)
        if isinstance(size, (list, tuple)) and size and {type(one) for one in size} == {int}
        else {size if isinstance(size, int) or size is None else 0}
    )
    if sides == {None}:
        return None
    side = sides.pop()
    if sides or type(side) is not int or not 0 < side <= MOST_PIXELS:
        raise ArchitectureMismatch(
            f"config.json: image_size is {quoted(size)}: square images of up to {MOST_PIXELS} pixels a side can be taken"
        )
    return side


def _with_entry(network: Network, kind: str, said: int | None) -> Network:
    """Return the network with its catalog entry: sizes are tried out on tensors without memory."""
    size = said or USUAL_SIZE
    try:
        with torch.device("meta"), Unfilled(), _few_parameters():
            module = made(network).eval()
        shape = _output(module, network.channels, size)
    except UnknownArchitecture:
        raise
    except Exception as error:  # of the library, for values that do not fit each other
        raise ArchitectureMismatch(f"config.json builds no {network.name} that runs: {reason(error)}") from None
    if shape != (1, network.num_classes):
        raise ArchitectureMismatch(
            f"config.json: {network.name} gives outputs of {shape}, and (1, {network.num_classes}) is expected"
        )
    fixed = not _takes(module, network.channels, 2 * size)
    smallest = min(size, MIN_SIZE)
    sgd = kind in SGD
    entry = Architecture(
        network.name,
        kind,
        size,
        size if fixed or not _takes(module, network.channels, smallest) else smallest,
        fixed_size=fixed,
        optimizer="sgd" if sgd else "adamw",
        peak_lr=0.05 if sgd else 1.25e-4,
        reproducible=False,
        library="transformers",
    )
    return replace(network, image_size=size if fixed else None, entry=entry)


@contextmanager
def _few_parameters() -> Iterator[None]:
    """Stop a build that would go on for hours: a configuration of a few bytes may ask for a million layers."""
    left = MOST_PARAMETERS

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it has more than {MOST_PARAMETERS} parameters' tensors")

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def _output(module: nn.Module, channels: int, side: int) -> tuple[int, ...]:
    with torch.inference_mode():
        return tuple(module(torch.empty(1, channels, side, side, device="meta")).shape)


def _takes(module: nn.Module, channels: int, side: int) -> bool:
    try:
        _output(module, channels, side)
    except Exception:  # whatever the library says to a size
        return False
    return True


def made(network: Network, drop_path: float | None = None) -> nn.Module:
    """Build a network. drop_path: the rate of stochastic depth at its last block; None: as the configuration has it.

    Raises UnknownArchitecture where the library is not installed, NothingMatches for a rate that the network does not take.
    """
    if installed() is None:
        raise UnknownArchitecture(
            f"{network.name} is built by transformers, which is not installed: pip install 'wbar[transformers]'"
        )
    config = _configuration(network)
    if drop_path is not None:
        if not hasattr(config, "drop_path_rate"):
            raise no_stochastic_depth(drop_path, network.name)
        config.drop_path_rate = drop_path
    _, _, classifiers = _registry()
    found = classifiers[type(config)]
    classes = found if isinstance(found, (list, tuple)) else (found,)
    built: nn.Module = _logits_only(next(one for one in classes if one.__name__ == network.name))(config)
    return built


@cache
def _logits_only(library_class: type) -> type:
    """Return the class whose forward gives logits, under the library's own name, by which it looks things up."""
    if getattr(library_class, "main_input_name", None) != INPUT:
        raise UnknownArchitecture(f"{library_class.__name__} takes no images of pixels, which can be fine-tuned here")
    return type(library_class.__name__, (LogitsOnly, library_class), {"__module__": library_class.__module__})


def own_names(network: Network, names: Iterable[str]) -> dict[str, str]:
    """Return the module's name of every tensor in a file, by the file's: the library renames what older versions wrote.

    Raises ArchitectureMismatch where the library would make other tensors of a file's.
    """
    renamed, joins = _renaming(network)
    found = {name: renamed(name) for name in names}
    if joined := next((name for name in found if joins(name)), None):
        raise ArchitectureMismatch(
            f"{quoted(joined)}: transformers {installed()} joins or splits this tensor when it loads the folder, which is not "
            "done here: save it again with save_pretrained(…, save_original_format=False)"
        )
    if len(set(found.values())) != len(found):
        raise ArchitectureMismatch(f"two tensors of the file have one name in {network.name}")
    return found


@lru_cache(maxsize=16)
def _renaming(network: Network) -> Any:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    with torch.device("meta"), Unfilled():
        module: Any = made(network)
    conversions = get_model_conversion_mapping(module)
    renamings = [one for one in conversions if isinstance(one, WeightRenaming)]
    converters = [one for one in conversions if isinstance(one, WeightConverter)]
    own = module.state_dict()

    def rename(name: str) -> tuple[str, str | None]:
        found: tuple[str, str | None] = rename_source_key(name, renamings, converters, module.base_model_prefix, own)
        return found

    return (lambda name: rename(name)[0]), (lambda name: rename(name)[1] is not None)


def is_ignored(network: Network, name: str) -> bool:
    """Return whether the library leaves out a tensor of a file that the network does not have (tables of older versions)."""
    return any(re.search(pattern, name) for pattern in _ignored(network))


@lru_cache(maxsize=16)
def _ignored(network: Network) -> tuple[str, ...]:
    with torch.device("meta"), Unfilled():
        return tuple(getattr(made(network), "_keys_to_ignore_on_load_unexpected", None) or ())
