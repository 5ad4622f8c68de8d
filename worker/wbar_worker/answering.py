"""The answers of a network about pictures, by task: each picture becomes inputs as a held-out image of the job did.

Of classes, labels and numbers: all pictures at the job's image size, side by side. Of pixels and boxes: one picture after
another, at its own size. What is wrong with a picture names it by its index.
"""

import base64
import io
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from wbar.errors import Rejected
from wbar.predictions import (
    MOST_ANSWER_BYTES,
    MOST_MASK_PIXELS,
    MOST_OUTPUTS,
    Answered,
    AnsweredBoxes,
    AnsweredNumbers,
    AnsweredPixels,
    Boxes,
    ClassMap,
    Given,
    NotAnswered,
    PredictedNetwork,
    Wanted,
)
from wbar_training.data.augment import RESIZED, Preparer
from wbar_training.data.coco_runs import as_text, runs_down
from wbar_training.data.decoding import decode
from wbar_training.data.packed import Fit, fitted
from wbar_training.failures import lacks_memory
from wbar_training.losses import class_logits
from wbar_training.networks.detectors import found_by
from wbar_training.tasks.attributes import Groups
from wbar_training.tasks.detection import surest
from wbar_training.tasks.mask_overlaps import windows
from wbar_training.tasks.mask_picture import palette
from wbar_training.uploads.image_checks import inspected
from wbar_training.uploads.limits import UploadLimits
from wbar_worker.processes import first_line

BOX_BYTES = 160  # of a box in the answer, without its mask
NOT_FINITE = "the network's outputs on these images are not finite"


class NotAnswerable(Exception):
    """Raised where there is no answer. index: of the image whose fault it is."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.message, self.index = message, index


class Answering(ABC):
    """The networks that are asked, one or several drawn ones, in eval mode. pixels: the most that an image may have."""

    def __init__(self, network: PredictedNetwork, networks: Iterable[nn.Module], pixels: int) -> None:
        self.network, self.networks, self._limits = network, networks, UploadLimits(pixels=pixels)
        self.prepare = Preparer(network.mean, network.std, "none", 0, torch.device("cpu"))

    def answer(self, images: Sequence[bytes], wanted: Wanted) -> Given | NotAnswered:
        """Return the answers about images, given as files. wanted: of boxes."""
        try:
            with torch.no_grad():
                return self._answered(images, wanted)
        except NotAnswerable as fault:
            return NotAnswered(message=fault.message, index=fault.index)
        except (RuntimeError, MemoryError, ValueError) as error:
            if lacks_memory(error):
                return NotAnswered(
                    message="these images need more memory than a request may use: send fewer, or smaller ones"
                )
            logging.getLogger("wbar").exception("the network failed")
            return NotAnswered(message=f"the network failed on these images ({first_line(error)})")

    @abstractmethod
    def _answered(self, images: Sequence[bytes], wanted: Wanted) -> Given:
        """Return the answers. Raises NotAnswerable."""

    def _decoded(self, index: int, data: bytes) -> Tensor:
        """Return the pixels of an image, (C, H, W) uint8. Raises NotAnswerable."""
        with naming(index):
            inspected([(f"images/{index}", data)], self._limits)
            return decode(data, 1 if self.network.weights.network.channels == 1 else 3)


@contextmanager
def naming(index: int) -> Iterator[None]:
    """Say which image it is that cannot be read, or is too large."""
    try:
        yield
    except Rejected as error:
        raise NotAnswerable(error.detail, index) from None
    except (RuntimeError, MemoryError) as error:  # of torch, also where memory is short
        if lacks_memory(error):
            message = f"images/{index} needs more memory than a request may use: send a smaller one"
            raise NotAnswerable(message, index) from None
        logging.getLogger("wbar").exception("the network failed")
        raise NotAnswerable(f"the network failed on images/{index} ({first_line(error)})", index) from None


class WholeImages(Answering):
    """Numbers of every image, of which mean and spread over the networks are kept."""

    def _answered(self, images: Sequence[bytes], wanted: Wanted) -> Given:  # noqa: ARG002  # it is of boxes
        inputs = self.prepare.plain(torch.stack([self._fitted(index, data) for index, data in enumerate(images)]))
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())  # Welford 1962
        for model in self.networks:
            values = self._values(model(inputs).double())
            if not bool(torch.isfinite(values).all()):
                raise NotAnswerable(NOT_FINITE)
            count += 1
            away = values - mean
            mean = mean + away / count
            squares = squares + away * (values - mean)
        return self._given(mean.tolist(), (squares / count).sqrt().tolist() if count > 1 else None)

    @abstractmethod
    def _values(self, outputs: Tensor) -> Tensor:
        """Return what outputs, (images, outputs) float64, stand for, (images, …) float64."""

    @abstractmethod
    def _given(self, means: list[list[float]], deviations: list[list[float]] | None) -> Given:
        """Return the answer."""

    def _fitted(self, index: int, data: bytes) -> Tensor:
        network, image = self.network, self._decoded(index, data)
        with naming(index):
            fit = Fit(network.crop_ratio, network.interpolation)
            return fitted(image, network.image_size, network.augment in RESIZED, fit)


class OfClasses(WholeImages):
    """Probabilities that add up to 1."""

    def _values(self, outputs: Tensor) -> Tensor:
        return class_logits(outputs).softmax(dim=1)

    def _given(self, means: list[list[float]], deviations: list[list[float]] | None) -> Given:
        return Answered(probabilities=means, deviations=deviations)


class OfLabels(OfClasses):
    """Probabilities, each of its own label."""

    def _values(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()


class OfAttributes(OfClasses):
    """Probabilities that add up to 1 over the categories of each attribute."""

    def _values(self, outputs: Tensor) -> Tensor:
        groups = Groups.of(self.network.labels)
        return groups.gathered(groups.logs(outputs).exp())


class OfNumbers(WholeImages):
    """Targets in their own units."""

    def _values(self, outputs: Tensor) -> Tensor:
        units = self.network.units
        assert units is not None
        mean, std = (torch.tensor(one, dtype=torch.float64) for one in (units.mean, units.std))
        return outputs * std + mean

    def _given(self, means: list[list[float]], deviations: list[list[float]] | None) -> Given:
        return AnsweredNumbers(values=means, deviations=deviations)


class OneByOne(Answering):
    """Answers about images at their own size, which may be large: their bytes are counted as they come."""

    _bytes = 0

    def _answered(self, images: Sequence[bytes], wanted: Wanted) -> Given:
        [model] = self.networks
        self._bytes = 0
        return self._given([self._of(index, data, model, wanted) for index, data in enumerate(images)])

    def _of(self, index: int, data: bytes, model: nn.Module, wanted: Wanted) -> Any:
        image = self._decoded(index, data)
        self._check(index, image.shape[-2], image.shape[-1])
        with naming(index):
            return self._of_input(index, self.prepare.plain(image[None]), model, wanted)

    def _check(self, index: int, height: int, width: int) -> None:
        """Raise NotAnswerable for an image that is too large for the network."""

    @abstractmethod
    def _of_input(self, index: int, inputs: Tensor, model: nn.Module, wanted: Wanted) -> Any:
        """Return the answer about one image, (1, C, H, W). Raises NotAnswerable."""

    @abstractmethod
    def _given(self, found: list[Any]) -> Given:
        """Return the answer, of those of the images."""

    def _count(self, index: int, size: int, how: str) -> None:
        """Count the bytes of an image's answer. how: there are to be fewer. Raises NotAnswerable beyond the limit."""
        self._bytes += size
        if self._bytes > MOST_ANSWER_BYTES:
            raise NotAnswerable(
                f"the answers up to images/{index} have more than {MOST_ANSWER_BYTES} bytes, the most of one request: {how}",
                index,
            )


class OfPixels(OneByOne):
    """A class for every pixel."""

    def _check(self, index: int, height: int, width: int) -> None:
        classes = self.network.weights.network.classes
        if height * width * classes > MOST_OUTPUTS:
            raise NotAnswerable(
                f"images/{index} has {width}x{height} pixels, and a network with {classes} classes is asked about at most "
                f"{MOST_OUTPUTS // classes}: make it smaller",
                index,
            )

    def _of_input(self, index: int, inputs: Tensor, model: nn.Module, wanted: Wanted) -> ClassMap:  # noqa: ARG002  # it is of boxes
        logits = class_logits(model(inputs)["out"].float())
        if not bool(torch.isfinite(logits).all()):
            raise NotAnswerable(NOT_FINITE)
        chosen = logits.argmax(dim=1)[0].to(torch.uint8)
        pixels = torch.bincount(chosen.flatten(), minlength=logits.shape[1]).tolist()
        file, picture = io.BytesIO(), Image.fromarray(chosen.numpy())
        # Which makes it a picture of indices.
        picture.putpalette(palette(logits.shape[1])[: logits.shape[1]].flatten().tolist())
        picture.save(file, "PNG")
        png = base64.b64encode(file.getvalue()).decode()
        self._count(index, len(png), "send fewer images at a time, or smaller ones")
        return ClassMap(height=chosen.shape[0], width=chosen.shape[1], pixels=pixels, png=png)

    def _given(self, found: list[ClassMap]) -> Given:
        return AnsweredPixels(maps=found)


class OfBoxes(OneByOne):
    """Boxes with classes, and their masks where the network finds some."""

    def _of_input(self, index: int, inputs: Tensor, model: nn.Module, wanted: Wanted) -> Boxes:
        height, width = inputs.shape[-2:]
        [found] = found_by(model, inputs, pasted=False)
        if not all(bool(torch.isfinite(one).all()) for one in found.values()):
            raise NotAnswerable(NOT_FINITE)
        best = {name: one[: wanted.most] for name, one in surest(found).items()}
        best = {name: one[best["scores"] >= wanted.score] for name, one in best.items()}
        self._count(index, BOX_BYTES * len(best["scores"]), "ask for fewer boxes, by `top` or `score`")
        return Boxes(
            height=height,
            width=width,
            classes=best["labels"].tolist(),
            scores=best["scores"].tolist(),
            corners=best["boxes"].tolist(),
            masks=self._masks(index, best, (height, width)) if "masks" in best else None,
        )

    def _given(self, found: list[Boxes]) -> Given:
        return AnsweredBoxes(found=found)

    def _masks(self, index: int, best: dict[str, Tensor], size: tuple[int, int]) -> list[str]:
        """Return the runs of each box's mask in an image of this size."""
        count, (height, width) = len(best["scores"]), size
        if count * height * width > MOST_MASK_PIXELS:
            raise NotAnswerable(
                f"images/{index} has {width}x{height} pixels and {count} masks: {count * height * width} pixels together, and "
                f"at most {MOST_MASK_PIXELS} are answered. Ask for fewer boxes, by `top` or `score`, or make it smaller",
                index,
            )
        found = list[str]()
        for window in windows(best, size):
            found.append(as_text(runs_down(window.whole(size))))
            self._count(
                index, len(found[-1]), "ask for fewer boxes, by `top` or `score`, or send fewer images at a time"
            )
        return found


ANSWERING: dict[str, type[Answering]] = {
    "classification": OfClasses,
    "multilabel": OfLabels,
    "attributes": OfAttributes,
    "regression": OfNumbers,
    "segmentation": OfPixels,
    "detection": OfBoxes,
}
