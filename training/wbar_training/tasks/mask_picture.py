"""A few held-out images beside their masks and what networks make of them, as one picture for the report."""

from collections.abc import Callable, Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from wbar_training.data.augment import Preparer
from wbar_training.data.masks import VOID, MaskSplit
from wbar_training.losses import class_logits

IMAGES = 6
SIDE, EDGE, HEAD = 160, 4, 18  # pixels: of a cell, around it, and of the line of names above
PAPER, INK, NO_CLASS = (255, 255, 255), (34, 34, 34), (230, 230, 230)


def palette(classes: int) -> Tensor:
    """Return a colour for each class, (256, 3) uint8: Pascal VOC's, whose bits are spread over the channels; void is light."""
    colours = torch.zeros(256, 3, dtype=torch.uint8)
    for index in range(min(classes, VOID)):
        rest = index
        for bit in range(7, -1, -1):
            for channel in range(3):
                colours[index, channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
    colours[VOID] = torch.tensor(NO_CLASS, dtype=torch.uint8)
    return colours


class MaskPicture:
    """The first, the last and evenly spread held-out images between them.

    model: that is filled with weights, and left with the last.
    """

    def __init__(self, model: nn.Module, examples: MaskSplit, prepare: Preparer) -> None:
        self.model, self.prepare = model, prepare
        count = min(IMAGES, len(examples))
        self.examples = examples.select(torch.linspace(0, len(examples) - 1, count).round().long())
        self.colours = palette(examples.labels.shape[1])

    @torch.no_grad()
    def drawn(self, weights: Mapping[str, Callable[[], Mapping[str, Tensor]]]) -> Image.Image:
        """Return the picture: a row for each image, with columns for itself, its mask, and the masks by each of the weights."""
        pairs = [self.examples.pair(index) for index in range(len(self.examples))]
        columns = {
            "image": [_picture(image.expand(3, -1, -1).permute(1, 2, 0)) for image, _ in pairs],
            "labels": [self._mask(mask) for _, mask in pairs],
        }
        for name, read in weights.items():
            self.model.load_state_dict(read())
            self.model.eval()
            columns[name] = [self._mask(self._predicted(index)) for index in range(len(pairs))]
        sheet = Image.new("RGB", (len(columns) * (SIDE + EDGE), HEAD + len(pairs) * (SIDE + EDGE)), PAPER)
        draw = ImageDraw.Draw(sheet)
        for column, (name, pictures) in enumerate(columns.items()):
            draw.text((column * (SIDE + EDGE) + 2, 2), name, fill=INK)
            for row, picture in enumerate(pictures):
                sheet.paste(_fitted(picture), (column * (SIDE + EDGE), HEAD + row * (SIDE + EDGE)))
        return sheet

    def _predicted(self, index: int) -> Tensor:
        inputs = self.examples.batch(slice(index, index + 1), self.prepare).inputs
        return class_logits(self.model(inputs)["out"]).argmax(dim=1)[0].cpu()

    def _mask(self, mask: Tensor) -> Image.Image:
        return _picture(self.colours[mask.long()])


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.contiguous().numpy())


def _fitted(picture: Image.Image) -> Image.Image:
    """Return a picture within a cell, its sides in proportion, pixels as they are: a mask has no colours between two."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST)
