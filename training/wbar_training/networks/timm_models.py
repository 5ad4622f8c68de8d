"""timm's classification networks, by the names of the version that is installed; nothing here where none is.

timm is imported where a network of it is built, since that takes seconds. Only names of its own registry are built, never
what a name like `hf-hub:…` or a file would lead to, and no pretrained weights are looked for.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import nn

from wbar.catalog import ARCHITECTURES, EXPORTED, SMP, TIMM, Architecture, catalog_name, similar_names
from wbar.errors import UnknownArchitecture
from wbar.spec import Network
from wbar_averaging.quoting import quoted
from wbar_training.networks.stochastic_depth import no_stochastic_depth

# timm's modules whose networks are customarily trained by SGD or RMSProp; all others by AdamW.
SGD = (
    "byobnet", "byoanet", "cspnet", "cspnext", "densenet", "dla", "dpn", "efficientnet", "ghostnet", "hardcorenas",
    "hrnet", "inception_next", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2", "mobilenetv3",
    "nasnet", "nfnet", "pnasnet", "regnet", "repghost", "res2net", "resnest", "resnet", "resnetv2", "rexnet",
    "selecsls", "senet", "sknet", "tresnet", "vgg", "vovnet", "xception", "xception_aligned",
)  # fmt: skip
MIN_SIZE = 32  # pixels of a side, from which no map is smaller than a pixel


def installed() -> str | None:
    """Return timm's version; None where it is not installed."""
    try:
        return version("timm") if importlib.util.find_spec("timm") else None
    except PackageNotFoundError:
        return None


def is_timms(name: str) -> bool:
    """Return whether a catalog name is of timm's networks, if it is one at all."""
    return name not in ARCHITECTURES and name != EXPORTED and not name.startswith(SMP)


@cache
def names() -> tuple[str, ...]:
    """Return the catalog names of timm's networks that end with a classifier, sorted; none where timm is not installed."""
    return tuple(sorted(_catalog())) if installed() else ()


@cache
def _catalog() -> Mapping[str, str]:
    """Return timm's own name of every catalog name."""
    import timm

    known = {name: _config(name) for name in timm.list_models()}
    return {
        catalog_name(TIMM + name): name
        for name, config in known.items()
        if config.get("classifier") and not name.endswith("_enc")  # encoders without a classifier
    }


def _config(name: str) -> dict[str, Any]:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name, allow_unregistered=True)
    return asdict(config) if config else {}


def timm_name(name: str) -> str:
    """Return timm's own name of a catalog name. Raises UnknownArchitecture, also where timm is not installed."""
    known = _catalog() if installed() else {}
    if name not in known:
        missing = "" if known else " (timm's are known where it is installed: pip install 'wbar[timm]')"
        raise UnknownArchitecture(
            f"{quoted(name)} is not an architecture of this service{similar_names(name, known)}; GET /v1/architectures lists "
            f"the names{missing}"
        )
    return known[name]


def entry(name: str) -> Architecture:
    """Return the catalog's entry of one of timm's networks. Raises UnknownArchitecture."""
    from timm.models._registry import _model_to_module

    own = timm_name(name)
    config, family = _config(own), _model_to_module[own]
    size = config["input_size"][-1]
    fixed = config["fixed_input_size"]
    smallest = MIN_SIZE if fixed else (config["min_input_size"] or (MIN_SIZE,))[-1]
    sgd = family in SGD
    return Architecture(
        name,
        family,
        size,
        min(size, smallest),
        fixed_size=fixed,
        optimizer="sgd" if sgd else "adamw",
        peak_lr=0.05 if sgd else 1.25e-4,
        reproducible=False,
        library="timm",
    )


def entries() -> Iterator[Architecture]:
    """Yield the entries of all of them."""
    return map(entry, names())


def pretrained_cfg(name: str) -> dict[str, Any]:
    """Return timm's own configuration of a catalog name's network, its usual one. Raises UnknownArchitecture."""
    return _config(timm_name(name))


def layers_of(name: str) -> tuple[tuple[str, ...], str]:
    """Return the paths of a network's classifiers, and of its first convolution (empty where timm does not say)."""
    config = _config(timm_name(name))
    classifier, first = config["classifier"], config.get("first_conv") or ""
    return (classifier,) if isinstance(classifier, str) else tuple(classifier), first if isinstance(
        first, str
    ) else first[0]


def module(network: Network, drop_path: float | None = None) -> nn.Module:
    """Build a network. drop_path: the rate of stochastic depth at its last block; None: none.

    Raises UnknownArchitecture; NothingMatches for a rate that it does not take; TypeError or ValueError for such sizes or
    channels.
    """
    import timm

    options: dict[str, Any] = {"num_classes": network.num_classes}
    if network.channels != 3:
        options["in_chans"] = network.channels
    if network.image_size is not None:
        options["img_size"] = network.image_size
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    try:
        made: nn.Module = timm.create_model(timm_name(network.name), pretrained=False, **options)
    except TypeError as error:
        if drop_path is not None and "drop_path_rate" in str(error):
            raise no_stochastic_depth(drop_path, network.name) from None
        raise
    return made
