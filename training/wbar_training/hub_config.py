"""What stands beside the weights in a folder that transformers or timm loads: `config.json` and how images are prepared.

Everything is read off the network and the metadata of the weights file, so that the folder says what was evaluated.
transformers loads it with `from_pretrained(folder)`, timm with `create_model("local-dir:folder")`; other libraries have no such
folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from wbar.spec import Network
from wbar_training.networks import timm_models
from wbar_training.outcome import HubConfig

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
PROBLEMS = {"multilabel": "multi_label_classification", "regression": "regression"}  # transformers' names of tasks
# The plainest of transformers' image processors: resize, crop, rescale, normalize, each as its options say.
PROCESSOR = "BitImageProcessor"


def hub_config(network: Network, weights: Path, prefix: str, task: str) -> HubConfig | None:
    """Return the files beside a result's weights; None where the network is neither transformers' nor timm's.

    weights: the safetensors file that is delivered.
    prefix: the part of its names before the network's own.
    task: what it was trained for.
    """
    with safe_open(weights, framework="pt") as file:
        said: Mapping[str, str] = file.metadata()
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # a safetensors handle is no dict
    floating = sorted(dtypes & DTYPES.keys(), key=list(DTYPES).index)
    if network.config is not None:
        dtype = DTYPES[floating[-1]] if floating else "float32"
        return HubConfig(_text(_transformers(network, said, dtype, task)), prefix, _text(_preprocessor(said)))
    if network.architecture.library == "timm":
        return HubConfig(_text(_timm(network, said)), prefix, None)
    return None


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _names(network: Network, said: Mapping[str, str]) -> list[str]:
    """Return a name of each output: a single one stands for the second of two classes."""
    names: list[str] = json.loads(said["wbar.classes"])
    return names[-1:] if network.num_classes == 1 else names


def _transformers(network: Network, said: Mapping[str, str], dtype: str, task: str) -> dict[str, Any]:
    assert network.config is not None
    names = _names(network, said)
    described: dict[str, Any] = json.loads(network.config)
    return described | {
        "architectures": [network.name],
        "dtype": dtype,
        "id2label": {str(output): name for output, name in enumerate(names)},
        "label2id": {name: output for output, name in enumerate(names)},
        "num_labels": network.num_classes,
        **({"problem_type": PROBLEMS[task]} if task in PROBLEMS else {}),
    }


def _preprocessor(said: Mapping[str, str]) -> dict[str, Any]:
    channels, height, width = json.loads(said["wbar.image_size"])
    normalize, sides = json.loads(said["wbar.normalize"]), {"height": height, "width": width}
    centre = said["wbar.resize"] == "centre"
    short = round(min(height, width) / _crop_ratio(said))
    return {
        "image_processor_type": PROCESSOR,
        "do_convert_rgb": channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": short} if centre else sides,
        "resample": RESAMPLE[_interpolation(said)],
        "do_center_crop": centre,
        "crop_size": sides,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": normalize["mean"],
        "image_std": normalize["std"],
    }


def _timm(network: Network, said: Mapping[str, str]) -> dict[str, Any]:
    size, normalize = json.loads(said["wbar.image_size"]), json.loads(said["wbar.normalize"])
    centre = said["wbar.resize"] == "centre"
    arguments = {} if network.channels == 3 else {"in_chans": network.channels}
    arguments |= {} if network.image_size is None else {"img_size": network.image_size}
    usual = timm_models.pretrained_cfg(network.name)
    kept = {
        name: usual[name] for name in ("classifier", "pool_size", "fixed_input_size") if usual.get(name) is not None
    }
    if network.channels == 3 and usual.get("first_conv") is not None:
        kept["first_conv"] = usual["first_conv"]
    pretrained = kept | {
        "num_classes": network.num_classes,
        "input_size": size,
        "mean": normalize["mean"],
        "std": normalize["std"],
        "interpolation": _interpolation(said),
        "crop_pct": _crop_ratio(said) if centre else 1.0,
        "crop_mode": "center" if centre else "squash",
        "custom_load": False,
    }
    return {
        "architecture": timm_models.timm_name(network.name),
        "num_classes": network.num_classes,
        "label_names": _names(network, said),
        "pretrained_cfg": pretrained,
    } | ({"model_args": arguments} if arguments else {})


def _crop_ratio(said: Mapping[str, str]) -> float:
    return float(json.loads(said.get("wbar.crop_ratio", "0.875")))


def _interpolation(said: Mapping[str, str]) -> str:
    return said.get("wbar.interpolation", "bilinear")
