"""What every method works with: the network, the images, and how weights are recomputed, evaluated and written."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wbar.errors import Diverged, PrecisionUnsupported
from wbar.jobs import HeldOut, Score, StepPhase
from wbar_averaging import has_batch_norm, recompute_batch_norm
from wbar_training.averages import Mean
from wbar_training.data.augment import RESIZED, Preparer
from wbar_training.data.colour import principal_axes
from wbar_training.data.feed import Feed, Request
from wbar_training.data.packed import Packed, Split, load_encoded, load_split
from wbar_training.distributed.ranks import Ranks
from wbar_training.draws import key, permutation
from wbar_training.evaluate import Outputs, even_slices, forward_batch, predict, score
from wbar_training.losses import Loss
from wbar_training.networks import architectures
from wbar_training.networks.fresh_layers import prepared
from wbar_training.plan import Work
from wbar_training.weights import WeightsWriter, output_names, read_tensors

BATCH_NORM_IMAGES = 2048
JUDGED_BATCH_NORM_IMAGES = 1024  # for each of the candidates of a choice: half the cost, and 512 were seen to do

Images = tuple[Split, Split, Split | None]  # to train on, to report on, and to choose on where something is chosen
Tick = Callable[[StepPhase, int], None]  # so many more images have been through the network, in this phase


class Setting:
    """One job's network and images on its device.

    model: holds w, the start's at first. probe: a second network, which holds whatever is recomputed and evaluated.
    tick: told after every batch; may raise to end the attempt. images: another setting of the same job, whose images serve.
    """

    def __init__(self, work: Work, tick: Tick, images: "Setting | None" = None) -> None:
        self.work, self.plan, self.tick = work, work.plan(), tick
        self.where = "for the start"  # what is being evaluated, for error messages
        self.device = torch.device(work.device)
        packed = Packed.read(work.dataset)
        order = [work.classes.index(name) for name in packed.classes] if work.classes else None
        self.images: Images = images.images if images else self._load_images(order)
        self.train, self.val, self.choose = self.images
        classes = output_names(work.classes or packed.classes, work.network.num_classes)
        self.prepare = Preparer(self.plan.mean, self.plan.std, self.plan.augment, self.plan.seed, self.device)
        self.prepare.axes = principal_axes(self.train.images) if self.plan.augment == "imagenet" else None
        encoded = load_encoded(work.dataset, "train") if self.plan.augment in RESIZED else None
        self.feed = Feed(self.train, self.prepare, encoded, work.loaders)
        self.writer = WeightsWriter(work, classes)
        self.model = self._prepared().to(self.device).to(memory_format=torch.channels_last)
        if self.plan.recipe.sync_batch_norm:
            self.model = self._synchronized(self.model)
        self.probe = copy.deepcopy(self.model)
        if self.plan.recipe.precision == "tf32":
            _use_tf32(self.device)

    def _synchronized(self, model: nn.Module) -> nn.Module:
        if self.device.type != "cuda":
            raise PrecisionUnsupported("recipe.sync_batch_norm is for GPUs, and this job runs on the CPU: leave it out")
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronized

    def _prepared(self) -> nn.Module:
        return prepared(self.work.network, self.writer.start(), self.plan.recipe, self.plan.seed)

    def _load_images(self, order: list[int] | None) -> Images:
        """What to train on, to report on, and to choose on where something is chosen."""
        centre, outputs = self.plan.augment in RESIZED, self.work.network.num_classes
        train = load_split(self.work.dataset, "train", self.plan.image_size, order, outputs=outputs)
        val = load_split(self.work.dataset, "val", self.plan.image_size, order, centre, outputs)
        if self.device.type == "cuda" and train.images.numel() < torch.cuda.mem_get_info()[0] // 4:
            # Otherwise the images stay on the host and are sent a batch at a time; the bits are the same.
            train = Split(train.images.to(self.device), train.labels)
        report, choose = self._set_aside(val) if self.work.chooses else (val, None)
        return train, report, choose

    def _set_aside(self, held_out: Split) -> tuple[Split, Split]:
        """The half to report on and the half to choose on, drawn with the job's seed."""
        half = len(held_out) // 2
        if half == 0:
            raise Diverged("a method that chooses by held-out images needs two of them or more")
        order = permutation(len(held_out), self.plan.seed, "held-out")
        report, choose = order[half:].sort().values, order[:half].sort().values
        return (
            Split(held_out.images[report], held_out.labels[report]),
            Split(held_out.images[choose], held_out.labels[choose]),
        )

    @property
    def held_out(self) -> HeldOut:
        return HeldOut(choose=len(self.choose) if self.choose else 0, report=len(self.val))

    @property
    def recomputed_images(self) -> int:
        """Images of one BatchNorm recompute; 0 where nothing is recomputed."""
        return min(BATCH_NORM_IMAGES, len(self.train)) if self.recomputes and has_batch_norm(self.model) else 0

    @property
    def recomputes(self) -> bool:
        """Else the means' statistics are the means of what was tracked (`track`), or the start's (`frozen`)."""
        return self.plan.batch_norm in ("recompute", "consistent")

    def recompute(self, model: nn.Module, most: int = BATCH_NORM_IMAGES) -> None:
        """BatchNorm statistics over the same augmented training images for every arm: they depend on the seed alone.

        Raises Diverged if they cannot be computed.
        """

        if not self.recomputes:
            return

        def forward(module: nn.Module, chunk: tuple[int, Tensor]) -> None:
            index, chosen = chunk
            inputs = self.feed.inputs(Request(chosen, "batchnorm-augment", index))
            torch.manual_seed(key(self.plan.seed, "batchnorm-forward", index))  # whatever else a network may draw
            with torch.autocast(self.device.type, dtype=self.plan.autocast, enabled=self.plan.autocast is not None):
                module(inputs)
            self.tick("batchnorm", len(chosen))

        drawn = permutation(len(self.train), self.plan.seed, "batchnorm")[:most]
        ranks = Ranks.here()
        # Every rank has its share of the batches; what they find is pooled.
        most_at_once = min(forward_batch(self.plan.image_size), -(-len(drawn) // ranks.size))
        slices = list(enumerate(even_slices(len(drawn), most_at_once)))
        try:
            recompute_batch_norm(
                model,
                [(index, drawn[part]) for index, part in slices[ranks.share(len(slices))]],
                forward,
                consistent=self.plan.batch_norm == "consistent",
            )
        except ValueError as error:
            raise Diverged(f"BatchNorm statistics could not be computed {self.where}: {error}") from error

    def predict(self, model: nn.Module, split: Split | None = None, augment_for: str | None = None) -> Outputs:
        """Outputs on the held-out images, or another split. Raises Diverged if a loss is not finite."""
        chosen = self.val if split is None else split

        def tick(images: int) -> None:
            self.tick("evaluate", images)

        found = predict(model, chosen, self.prepare, self.plan.autocast, tick, augment_for)
        if not bool(torch.isfinite(found.losses).all()):
            raise Diverged(
                f"the loss on held-out images {self.where} is not finite: lower method.high.lr, or check the start"
            )
        return found

    def settle(self, model: nn.Module) -> None:
        """Recompute BatchNorm statistics for the weights as the file will have them: what is evaluated is what is sent."""
        self.as_uploaded(model)
        self.recompute(model)
        self.as_uploaded(model)

    def as_uploaded(self, model: nn.Module) -> None:
        """Round to the dtype that the file will have (half-precision checkpoints)."""
        for name, tensor in model.state_dict().items():
            dtype = self.writer.dtype(name)
            if dtype is not None and dtype != tensor.dtype and tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype))

    def score(self, found: Outputs, split: Split | None = None) -> Score:
        return score(found.probabilities, (self.val if split is None else split).labels, found.losses)

    def start_scores(self, split: Split | None = None) -> tuple[Score, Score, Tensor]:
        """The start as it came, with recomputed statistics, and its losses as it came. `model` must hold it."""
        found = self.predict(self.model, split)
        plain = recomputed = self.score(found, split)
        if self.recomputed_images:
            self.probe.load_state_dict(self.model.state_dict())
            self.recompute(self.probe)
            recomputed = self.score(self.predict(self.probe, split), split)
        return plain, recomputed, found.losses

    def start(self) -> dict[str, Tensor]:
        """The start's tensors as a whole state dict of the network: the checkpoint's, and what is started afresh."""
        return {name: tensor.to(self.device) for name, tensor in self._prepared().state_dict().items()}

    def train_mode(self) -> None:
        """The model as it trains: with `frozen`, BatchNorm goes on with the statistics that it has."""
        self.model.train()
        if self.plan.batch_norm == "frozen":
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def loss(self) -> Loss:
        """What training minimizes."""
        classes = self.work.network.num_classes
        labels = self.train.labels
        counts = torch.bincount(labels, minlength=classes) if labels.dim() == 1 else labels.sum(dim=0)
        return Loss(self.plan.recipe, classes, counts, self.device)

    def train_score(self, model: nn.Module) -> Score:
        """On the training images that BatchNorm is recomputed from, augmented as they are trained on, in eval mode."""
        drawn = permutation(len(self.train), self.plan.seed, "batchnorm")[:BATCH_NORM_IMAGES]
        images = self.train.images[drawn.to(self.train.images.device)]
        split = Split(images, self.train.labels[drawn])
        return self.score(self.predict(model, split, "train-score"), split)

    def read(self, path: Path, prefix: str) -> dict[str, Tensor]:
        """A file's tensors as a whole state dict of the network, in its own dtypes, on its device.

        prefix: what the file's names have before the network's own.
        """
        tensors = {name.removeprefix(prefix): tensor for name, tensor in read_tensors(path).items()}
        model, _ = architectures.load(self.work.network, tensors)
        return {name: tensor.to(self.device) for name, tensor in model.state_dict().items()}

    def judge(self, mean: Mean) -> Tensor:
        """A mean's losses on the images set aside for choosing, (N,) float64, BatchNorm recomputed for it."""
        mean.copy_to(self.probe)
        self.as_uploaded(self.probe)
        self.recompute(self.probe, JUDGED_BATCH_NORM_IMAGES)
        self.as_uploaded(self.probe)
        return self.predict(self.probe, self.choose).losses

    def write_result(self, mean: Mean, snapshots: int) -> tuple[Path, Path]:
        """w̄ into the probe, BatchNorm recomputed, and both files that the job gives back: safetensors and PyTorch's."""
        mean.copy_to(self.probe)
        self.as_uploaded(self.probe)
        self.recompute(self.probe)
        return self.write_files(self.probe.state_dict(), snapshots)

    def write_files(self, tensors: dict[str, Tensor], snapshots: int) -> tuple[Path, Path]:
        weights = self.work.scratch / "averaged.safetensors"
        pytorch = weights.with_suffix(".pth")
        if Ranks.here().leads:
            self.writer.write(weights, tensors, snapshots=snapshots)
            written = read_tensors(weights)
            torch.save(architectures.as_torch_saves(self.work.network, written, self.work.prefix), pytorch)
        Ranks.here().from_leader(None)  # it is written when any rank goes on
        return weights, pytorch

    @property
    def chance(self) -> float:
        """The accuracy of a guess."""
        labels = self.val.labels
        if labels.dim() == 1:
            return 1 / len(set(labels.tolist()))
        present = labels.double().mean(dim=0)
        return torch.maximum(present, 1 - present).mean().item()  # always the commoner answer

    def near_chance(self, start: Score) -> str | None:
        """A warning for a start that seems to be read wrongly."""
        if (
            self.val.labels.dim() > 1
            or start.accuracy >= 1.5 * self.chance
            or self.plan.recipe.head == "reset"
            or self.plan.recipe.reset
        ):
            return None
        chance = self.chance
        return (
            f"the start's accuracy on held-out images is {start.accuracy:.1%}, near chance ({chance:.1%}): check "
            "`classes` (the checkpoint's class order), `recipe.normalize` and `recipe.image_size`"
        )


def _use_tf32(device: torch.device) -> None:
    if device.type != "cuda":
        raise PrecisionUnsupported(
            f'recipe.precision is "tf32", which GPUs have, and this job runs on {device.type}: choose float32 or bfloat16'
        )
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def make_deterministic(work: Work, threads: int | None) -> None:
    """One thread instead of two changes the bits: the count is part of the state. GPU kernels are the repeatable ones."""
    if threads is not None:
        torch.set_num_threads(threads)
    if work.device.startswith("cuda"):
        torch.use_deterministic_algorithms(True, warn_only=not work.reproducible)
        torch.backends.cudnn.benchmark = False
