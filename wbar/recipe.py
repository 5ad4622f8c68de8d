"""What to train with: optimizer, batch, image size, normalization, augmentation, precision, loss."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from wbar.method import Auto
from wbar.request import RequestModel

OF_MASKS = ("scale_crop_flip", "scale_crop_flip_colour")  # augmentations of images with their masks
OF_BOXES = ("flip", *OF_MASKS)  # … with their boxes
Augment = Literal[
    "auto",
    "none",
    "pad_crop",
    "pad_crop_flip",
    "resized_crop",
    "resized_crop_flip",
    "imagenet",
    "rand_augment",
    "trivial_augment",
    "scale_crop_flip",
    "scale_crop_flip_colour",
    "flip",
]
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
BatchNorm = Literal["auto", "recompute", "consistent", "frozen", "track"]
Interpolation = Literal["bilinear", "bicubic"]
OptimizerName = Literal["auto", "sgd", "adam", "adamw", "rmsprop", "adagrad"]
Pixels = Annotated[int, Field(ge=4, le=4096)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ClassWeight = Annotated[float, Field(ge=1e-6, le=1e6)]  # what sums and ratios in float32 can bear
Pattern = Annotated[str, Field(min_length=1, max_length=256)]
MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Marker:
    """A mark on a field of the recipe that says what the field is about."""

    about: str


TRAINING = Marker("training")  # refused where nothing is trained, in a soup


# Left out of documents while they have their defaults, so that workers of versions before them read the others, and equal
# work keeps its digest.
NEW_OPTIONS = (
    "crop_ratio",
    "interpolation",
    "drop_path",
    "layer_decay",
    "head_epochs",
    "head_lr",
    "dice",
    "loss",
    "huber_delta",
    "standardize",
)


def is_about_training(field: str) -> bool:
    """Return whether a field of the recipe is marked as being about training."""
    return TRAINING in Recipe.model_fields[field].metadata


class Optimizer(RequestModel):
    """One of torch's optimizers. Weight decay is coupled (L2) in all but AdamW, where it is decoupled."""

    name: OptimizerName = Field("auto", description="`auto`: what the architecture is customarily trained with.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of `sgd` (0: plain) and `rmsprop`; ignored by the others.")
    nesterov: bool = Field(True, description="Nesterov's form of SGD's momentum; ignored by the others.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Of `adam` and `adamw`; ignored by the others.")
    alpha: float = Field(
        0.99, ge=0, lt=1, description="RMSProp's smoothing of squared gradients; ignored by the others."
    )
    weight_decay: Auto | Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] = Field(
        "auto",
        description="`auto`: 5e-4 with SGD (1e-4 in detection), 0.05 with AdamW, 0 with the others (an L2 term that is divided "
        "by the gradient's size is no weight decay: Loshchilov & Hutter 2019).",
    )
    no_bias_decay: bool = Field(
        True,
        description="Weight decay on the weights of convolutions and linear maps only; biases, normalization's γ and β, class "
        "tokens, position tables and layer scales are left alone, and what timm's networks name themselves (He et al. 2019).",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Optimizer":
        if self.nesterov and self.momentum == 0 and self.name == "sgd":
            raise ValueError("nesterov needs a momentum above 0: set nesterov to false or momentum to 0.9")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {self.betas}")
        return self


class Distillation(RequestModel):
    """The outputs of a teacher as a second target: (1 − weight)·L + weight·T²·KL(p_T(teacher) ‖ p_T(student)), Hinton et al.
    2015. The teacher is in eval mode and has no gradient; its forward passes are in the estimate.
    """

    teacher: str = Field(
        pattern="^(ckpt|job)_.+$",
        max_length=64,
        description="`ckpt_…`: a checkpoint with the same outputs, of any architecture. `job_…`: the ensemble of a "
        "former job's snapshots, whose softened outputs are averaged.",
    )
    temperature: float = Field(4.0, gt=0, le=100, description="T: logits are divided by it.")
    weight: float = Field(0.5, gt=0, le=1)


class Normalization(RequestModel):
    """Applied to pixels in [0, 1], per channel: (pixel − mean) / std."""

    mean: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(min_length=1, max_length=4)
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1, max_length=4)

    @model_validator(mode="after")
    def _consistent(self) -> "Normalization":
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} channels and std has {len(self.std)}")
        return self


IMAGENET = Normalization(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

AS_THEY_ARE = Normalization(mean=[0.0] * 3, std=[1.0] * 3)  # for networks that normalize inside, as detectors do


class Recipe(RequestModel):
    """Every field has a default; `auto` is resolved when the job is created and shown in the job."""

    optimizer: Annotated[Optimizer, TRAINING] = Field(default_factory=Optimizer)
    batch_size: Auto | Annotated[int, Field(ge=2, le=65536)] = Field(
        "auto", description="`auto`: 128, or the power of two that gives a smaller set at least 20 steps an epoch."
    )
    image_size: Auto | Pixels | tuple[Pixels, Pixels] = Field(
        "auto",
        description="Side or [height, width]. `auto`: that of the checkpoint's `pretrained_cfg`; without one the dataset's; "
        "the architecture's where it takes no other, and for photographs (many sizes, or a side above 96 pixels).",
    )
    crop_ratio: float = Field(
        0.875,
        gt=0,
        le=1,
        description="Where held-out images are cut out of their centre: the image's side over the short side that they are "
        "resized to. Default: what the checkpoint's `pretrained_cfg` says, else 0.875.",
    )
    interpolation: Interpolation = Field(
        "bilinear",
        description="How whole images are resized, with antialias. Default: what the checkpoint's `pretrained_cfg` says, else "
        "`bilinear`. Random boxes are always bilinear.",
    )
    normalize: Literal["auto", "imagenet"] | Normalization = Field(
        "auto",
        description="`auto`: what the checkpoint's `pretrained_cfg` says; without one the training split's own mean and "
        "standard deviation, unless the start's loss on training images says that it was trained with ImageNet's, with 0.5 and "
        "0.5, or with none: `result.normalization`.",
    )
    augment: Augment = Field(
        "auto",
        description="`auto`: pad-crop-flip (digits are not flipped); for photographs `resized_crop_flip`. `resized_crop`: "
        "8–100 % of the area, aspect 3/4–4/3, held-out images by their centre (Szegedy et al. 2015). `imagenet`: that, "
        "flipped, with colour jitter and PCA noise (He et al. 2019). `rand_augment`, `trivial_augment`: torchvision's, after "
        "a pad-crop-flip. Of segmentation, images and masks alike: `scale_crop_flip` (its `auto`): scaled by 0.5–2, a random "
        "crop of `image_size`, void where it reaches beyond the image, mirrored; `…_colour`: hue, saturation, brightness too. "
        "Of detection: these, once the whole image is fitted into `image_size`, or `flip` (its `auto`): fitted and mirrored.",
    )
    precision: Precision = Field(
        "auto",
        description="`auto`: bfloat16 autocast where a live worker has a GPU (not in detection), else float32. `tf32`: GPUs "
        "only. `float16`: with dynamic loss scaling. Weights, means and BatchNorm statistics are float32 or wider with each.",
    )
    label_smoothing: Annotated[float, TRAINING] = Field(
        0.0, ge=0, lt=1, description="ε: targets are (1 − ε)·one-hot + ε/classes; of attributes, of each by itself."
    )
    grad_clip_norm: Annotated[Positive | None, TRAINING] = Field(
        None, description="Global norm to which gradients (with the pull's) are clipped."
    )
    accumulate: Annotated[int, TRAINING] = Field(
        1,
        ge=1,
        le=1024,
        description="Parts that a batch goes through the network in; one optimizer step for all. BatchNorm sees one part.",
    )
    early_stopping: Annotated[int | None, TRAINING] = Field(
        None,
        ge=1,
        le=1000,
        description="Stop after this many snapshots in a row that did not lower w̄'s loss on the selection split (methods `ema` "
        "and `none`: this many epochs); the average still comes.",
    )
    compile: Annotated[bool, TRAINING] = Field(False, description="torch.compile for the training steps.")
    class_weights: Annotated[
        Literal["balanced"] | Annotated[list[ClassWeight], Field(max_length=MAX_CLASSES, fail_fast=True)] | None,
        TRAINING,
    ] = Field(
        None,
        description="Weights in the loss, one per output in the checkpoint's order; `balanced`: images / (classes · "
        "images of the class), of attributes among the categories of each; an image with several labels counts for each of "
        "them.",
    )
    dice: Annotated[float, TRAINING] = Field(
        0.0,
        ge=0,
        le=100,
        description="Of segmentation: added to the cross-entropy times this, 1 − the mean Dice coefficient of the classes that "
        "an image has (Drozdzal et al. 2016).",
    )
    loss: Annotated[Literal["mse", "huber"], TRAINING] = Field(
        "mse",
        description="Of regression: the training loss of standardized targets, r² or Huber's (1964): r²/2 up to `huber_delta`, "
        "linear beyond it. Reported losses are r² with both.",
    )
    huber_delta: Annotated[Positive | None, TRAINING] = Field(
        None, description="δ of `loss: huber`, in standard deviations of the target. Default: 1."
    )
    standardize: bool = Field(
        True,
        description="Of regression: whether the network's outputs are (target − mean) / std by the training split, as the "
        "metadata of the weights says (`wbar.targets`); `false`: they are targets in their own units, of a start that was "
        "trained so.",
    )
    mixup: Annotated[float | None, TRAINING] = Field(
        None,
        ge=0.01,
        le=100,
        description="α: inputs λx + (1 − λ)x′, λ ~ Beta(α, α), one per batch (Zhang et al. 2018). "
        "Of detection: the blended image has the boxes of both, each as a whole label (after Zhang et al. 2019, with α = 1.5).",
    )
    cutmix: Annotated[float | None, TRAINING] = Field(
        None,
        ge=0.01,
        le=100,
        description="α: a box of share 1 − λ from another image, λ ~ Beta(α, α) (Yun et al. 2019). With `mixup`, "
        "one of both per batch, evenly.",
    )
    distillation: Annotated[Distillation | None, TRAINING] = None
    dropout: Annotated[float | None, TRAINING] = Field(
        None, ge=0, lt=1, description="Overrides the rate of every dropout layer."
    )
    drop_path: Annotated[float | None, TRAINING] = Field(
        None,
        ge=0,
        lt=1,
        description="Stochastic depth (Huang et al. 2016): the rate at the last block, from 0 at the first in equal steps. "
        "Refused for a network that has none.",
    )
    layer_decay: Annotated[float | None, TRAINING] = Field(
        None,
        gt=0,
        le=1,
        description="d: the rate of a layer is d^k of the schedule's, k layers below the classifier (Bao et al. 2022). Layers "
        "are those of timm's `group_matcher`, and of other networks their blocks.",
    )
    head_epochs: Annotated[float, TRAINING] = Field(
        0.0,
        ge=0,
        le=1000,
        description="Epochs that the classifier alone is trained for before the job begins (linear probing, then fine-tuning: "
        "Kumar et al. 2022), along a cosine to 0. What they lead to is the start that everything is compared with.",
    )
    head_lr: Annotated[Positive | None, TRAINING] = Field(
        None, description="The classifier's rate in `head_epochs`. Default: ten times the first rate of the method."
    )
    gradient_penalty: Annotated[float, TRAINING] = Field(
        0.0,
        ge=0,
        le=1000,
        description="γ of γ·‖∂L/∂x‖², mean over the images (Drucker & LeCun 1992); about twice the cost.",
    )
    freeze: Annotated[list[Pattern], TRAINING] = Field(
        default_factory=list,
        max_length=256,
        description='Parameters that stay as they are, by name: `["conv1.*", "layer1.*"]`. Each pattern must match one.',
    )
    reset: Annotated[list[Pattern], TRAINING] = Field(
        default_factory=list,
        max_length=256,
        description="Layers that are started afresh, by the names of their parameters.",
    )
    head: Annotated[Literal["keep", "reset"], TRAINING] = Field(
        "keep",
        description="`reset`: a new classifier with one output for each class of the dataset, in place of the checkpoint's.",
    )
    init: Annotated[Literal["kaiming", "xavier", "normal"], TRAINING] = Field(
        "kaiming",
        description="How what is started afresh begins: Kaiming (He et al. 2015), Xavier (Glorot & Bengio 2010), or "
        "N(0, 1/√n_in); biases 0.",
    )
    zero_gamma: Annotated[bool, TRAINING] = Field(
        True,
        description="γ = 0 for the last BatchNorm of each residual block that is started afresh as a whole, so that it begins "
        "as its shortcut (Goyal et al. 2017). Known are the blocks of ResNet, ResNeXt, Wide ResNet and the CIFAR ResNets; "
        "those of other families begin as their layers do.",
    )
    devices: Annotated[int, TRAINING] = Field(
        1, ge=1, le=64, description="GPUs (or CPU processes) that share each batch."
    )
    sync_batch_norm: Annotated[bool, TRAINING] = Field(
        False, description="With several GPUs: BatchNorm over the whole batch."
    )
    batch_norm: BatchNorm = Field(
        "auto",
        description="Where w̄'s BatchNorm statistics come from. `recompute`: from training images, layer by layer "
        "in one pass. `consistent`: the same, each layer from the statistics of those before it (several passes; "
        "for small batches). `track`: the mean of what training tracked. `frozen`: the start's, which training "
        "leaves alone; default rates of SGD are lower then, but for masks and boxes. `auto`: `recompute`, `track` for method "
        "`none`, and `frozen` in detection.",
    )

    @model_validator(mode="after")
    def _fits(self) -> "Recipe":
        if self.gradient_penalty and (self.precision == "float16" or self.compile):
            other = "compile" if self.compile else "precision float16"
            raise ValueError(
                f"gradient_penalty is differentiated twice, which {other} is not made for: leave one of them out"
            )
        if self.head_lr is not None and not self.head_epochs:
            raise ValueError("head_lr is the rate of head_epochs, which is 0: give both")
        if self.huber_delta is not None and self.loss != "huber":
            raise ValueError(f'huber_delta is of loss "huber", and loss is "{self.loss}": give both')
        if self.sync_batch_norm and self.devices == 1:
            raise ValueError("sync_batch_norm is for several devices, and devices is 1")
        if isinstance(self.batch_size, int) and self.batch_size < 2 * self.devices * self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} in {self.accumulate} parts on {self.devices} devices leaves parts of a single "
                "image, which has no variance"
            )
        return self
