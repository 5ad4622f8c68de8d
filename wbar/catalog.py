"""The names a job may use: architectures with what they are customarily trained with, and the built-in datasets.

Torch-free, so that the API can validate and resolve a job without loading a framework; a test holds it equal to what
`wbar_training.networks` can really build. Networks of libraries that a worker may have installed are not in it: which there
are depends on the version, so their entries come from there (`wbar_training.networks.timm_models`, `smp_models`). `peak_lr`
is the customary peak rate, scaled linearly to batch 128 from the published recipes (He et al. 2016; the torchvision
references; for AdamW: Liu et al. 2021 and 2022, Touvron et al. 2021).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

Library = Literal["wbar", "torchvision", "timm", "transformers", "smp"]
# What an output is for: the image as a whole, every pixel of it, or boxes in it.
Outputs = Literal["image", "pixels", "boxes"]
EXPORTED: Literal["exported"] = "exported"  # the name of every network that came as a program of torch.export
TIMM = "timm/"  # before a name that torchvision's or the CIFAR family's network has, too; before any of timm's if one likes
SMP = "smp/"  # before the decoder and the encoder of a network of segmentation-models-pytorch: `smp/unet-resnet34`

# Of segmentation-models-pytorch; its DPT takes encoders of timm alone, and none of its own.
SMP_DECODERS = (
    "unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet", "segformer",
)  # fmt: skip
SEGMENTATION = frozenset({"fcn", "deeplabv3", "lraspp", *SMP_DECODERS})  # families with an output for every pixel
MASKED = "maskrcnn"  # the family that finds a mask in each box, too
POOLED = ("fasterrcnn", MASKED)  # families that pool the features of candidate regions
DETECTION = (*POOLED, "retinanet", "fcos", "ssd")  # families that find boxes
BATCH = 128  # the batch that `peak_lr` belongs to


@dataclass(frozen=True)
class Architecture:
    """One network that can be fine-tuned. Sizes are the side of a square image in pixels. library: whose class it is."""

    name: str
    family: str
    size: int  # the side that the published weights were trained at
    min_size: int  # smallest side its strides and poolings survive in training mode
    fixed_size: bool = False  # position tables tie the weights to one image size, read off the checkpoint
    optimizer: Literal["sgd", "adamw"] = "sgd"
    peak_lr: float = 0.1
    reproducible: bool = True  # False: an operation without a deterministic CUDA kernel, or it is not known
    library: Library | Literal["exported"] = "torchvision"

    def __post_init__(self) -> None:
        assert self.min_size <= self.size

    @property
    def outputs(self) -> Outputs:
        """The purpose of the outputs."""
        if self.family in DETECTION:
            return "boxes"
        return "pixels" if self.family in SEGMENTATION else "image"

    @property
    def finds_masks(self) -> bool:
        """Whether each box comes with a mask, which is learned from the masks of a dataset's boxes."""
        return self.family == MASKED

    @property
    def pools_regions(self) -> bool:
        """Whether the features of candidate regions are pooled (RoIAlign)."""
        return self.family in POOLED


def _family(names: str, family: str, size: int, min_size: int, **rest: object) -> list[Architecture]:
    return [Architecture(name, family, size, min_size, **rest) for name in names.split()]  # type: ignore[arg-type]  # heterogeneous keywords


def _boxes(peak_lr: float) -> dict[str, object]:
    return {
        "peak_lr": peak_lr,
        "reproducible": False,
    }  # torchvision's RoI pooling adds in any order; the others were not run


_DENSE = {"peak_lr": 0.08, "reproducible": False}  # no run on a GPU has been repeated yet
_ADAMW = {"optimizer": "adamw", "peak_lr": 1.25e-4}

_ALL = [
    # The CIFAR family: 32 × 32 and smaller. VGG without BatchNorm's help wants half the rate (Izmailov et al. 2018).
    *_family("resnet20 resnet32 resnet44 resnet56 resnet110", "cifar_resnet", 32, 4, library="wbar"),
    *_family("preresnet110 preresnet164", "cifar_preresnet", 32, 4, library="wbar"),
    *_family("wide_resnet28_10", "cifar_wide_resnet", 32, 4, library="wbar"),
    *_family("cifar_vgg16_bn", "cifar_vgg", 32, 32, peak_lr=0.05, library="wbar"),
    # torchvision, SGD. The references give 0.1 for a batch of 256, and 0.01 to networks without BatchNorm.
    *_family("alexnet", "alexnet", 224, 63, peak_lr=0.005, reproducible=False),
    *_family("vgg11 vgg13 vgg16 vgg19", "vgg", 224, 32, peak_lr=0.005, reproducible=False),
    *_family("vgg11_bn vgg13_bn vgg16_bn vgg19_bn", "vgg", 224, 32, peak_lr=0.005, reproducible=False),
    *_family("squeezenet1_0", "squeezenet", 224, 24, peak_lr=0.005),
    *_family("squeezenet1_1", "squeezenet", 224, 17, peak_lr=0.005),
    *_family("densenet121 densenet161 densenet169 densenet201", "densenet", 224, 29, peak_lr=0.05),
    *_family("googlenet", "googlenet", 224, 15, peak_lr=0.05, reproducible=False),
    *_family("inception_v3", "inception", 299, 75, peak_lr=0.05, reproducible=False),
    *_family("resnet18 resnet34 resnet50 resnet101 resnet152", "resnet", 224, 4, peak_lr=0.05),
    *_family("resnext50_32x4d resnext101_32x8d resnext101_64x4d", "resnet", 224, 4, peak_lr=0.05),
    *_family("wide_resnet50_2 wide_resnet101_2", "resnet", 224, 4, peak_lr=0.05),
    *_family("mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3", "mnasnet", 224, 4, peak_lr=0.05),
    *_family("mobilenet_v2 mobilenet_v3_small mobilenet_v3_large", "mobilenet", 224, 4, peak_lr=0.025),
    *_family(
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        "shufflenet",
        224,
        4,
        peak_lr=0.0625,
    ),
    *_family(
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf",
        "regnet",
        224,
        4,
    ),
    *_family(
        "regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf "
        "regnet_y_128gf",
        "regnet",
        224,
        4,
    ),
    *[
        arch
        for name, size in (
            ("b0", 224),
            ("b1", 240),
            ("b2", 288),
            ("b3", 300),
            ("b4", 380),
            ("b5", 456),
            ("b6", 528),
            ("b7", 600),
        )
        for arch in _family(f"efficientnet_{name}", "efficientnet", size, 4, peak_lr=0.05)
    ],
    *[
        arch
        for name, size in (("s", 384), ("m", 480), ("l", 480))
        for arch in _family(f"efficientnet_v2_{name}", "efficientnet", size, 4, peak_lr=0.05)
    ],
    # torchvision, AdamW at a small rate: 1e-3 for a batch of 1024.
    *_family("convnext_tiny convnext_small convnext_base convnext_large", "convnext", 224, 32, **_ADAMW),
    *_family("swin_t swin_s swin_b", "swin", 224, 4, **_ADAMW),
    *_family("swin_v2_t swin_v2_s swin_v2_b", "swin", 256, 4, **_ADAMW),
    *_family("vit_b_16 vit_b_32 vit_l_16 vit_l_32", "vit", 224, 32, fixed_size=True, **_ADAMW),
    *_family("vit_h_14", "vit", 224, 14, fixed_size=True, **_ADAMW),
    *_family("maxvit_t", "maxvit", 224, 224, fixed_size=True, **_ADAMW),
    # torchvision, a class for every pixel. The references give 0.02 for a batch of 32, crops of 480 pixels.
    *_family("fcn_resnet50", "fcn", 480, 8, peak_lr=0.08),
    *_family("deeplabv3_resnet50", "deeplabv3", 480, 8, peak_lr=0.08),
    *_family("lraspp_mobilenet_v3_large", "lraspp", 480, 16, peak_lr=0.08),
    *_family("fcn_resnet101", "fcn", 480, 8, **_DENSE),
    *_family("deeplabv3_resnet101 deeplabv3_mobilenet_v3_large", "deeplabv3", 480, 8, **_DENSE),
    # torchvision, boxes: images of any size, which the network resizes. The references give 0.02 for a batch of 16 to Faster
    # R-CNN, 0.01 to RetinaNet and FCOS, 0.002 for a batch of 32 to SSD, 0.15 for one of 192 to SSDlite.
    *_family("fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2", "fasterrcnn", 800, 32, **_boxes(0.16)),
    *_family("fasterrcnn_mobilenet_v3_large_fpn", "fasterrcnn", 800, 32, **_boxes(0.16)),
    *_family("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn", 320, 32, **_boxes(0.16)),
    *_family("maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2", MASKED, 800, 32, **_boxes(0.16)),
    # Ours: a tenth of that, for images of about 96 pixels.
    *_family("maskrcnn_resnet18_96_fpn", MASKED, 96, 32, library="wbar", **_boxes(0.16)),
    *_family("retinanet_resnet50_fpn retinanet_resnet50_fpn_v2", "retinanet", 800, 32, **_boxes(0.08)),
    *_family("fcos_resnet50_fpn", "fcos", 800, 32, **_boxes(0.08)),
    *_family("ssd300_vgg16", "ssd", 300, 32, **_boxes(0.008)),
    *_family("ssdlite320_mobilenet_v3_large", "ssd", 320, 32, **_boxes(0.1)),
]

ARCHITECTURES: dict[str, Architecture] = {arch.name: arch for arch in sorted(_ALL, key=lambda arch: arch.name)}

# Networks whose published weights belong to a relative with the same tensors that normalizes its inputs itself: torchvision's
# googlenet and inception_v3 with transform_input=True. `recipe.normalize: auto` tries what that amounts to.
NORMALIZED_INSIDE = frozenset({"googlenet", "inception_v3"})


def catalog_name(name: str) -> str:
    """Return how the catalog spells a name that a user or a file gives; it need not be in the catalog.

    timm's pretrained tag is taken off (`vit_tiny_patch16_224.augreg_in21k`), and `timm/` where no other network has the
    name; `timm/resnet18` and `resnet18.a1_in1k` are timm's, `resnet18` is torchvision's.
    """
    plain, tag, _ = name.removeprefix(TIMM).partition(".")
    return TIMM + plain if (name.startswith(TIMM) or tag) and plain in ARCHITECTURES else plain


def similar_names(name: str, others: Iterable[str] = ()) -> str:
    """Return a clause that names the architectures which are spelled most like `name`; empty where none is.

    others: names beside those of this module.
    """
    alike = get_close_matches(name, [*ARCHITECTURES, *others], n=3)
    return f" (similar names: {', '.join(alike)})" if alike else ""


@dataclass(frozen=True)
class BuiltinDataset:
    """Real images that come with a dependency or a distribution package."""

    name: str
    classes: tuple[str, ...]
    flip: bool  # whether a mirrored image is still of its class


BUILTINS: dict[str, BuiltinDataset] = {
    data.name: data
    for data in (
        BuiltinDataset("digits", tuple("0123456789"), flip=False),
        BuiltinDataset(
            "fashion-mnist",
            ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
            flip=True,
        ),
    )
}
