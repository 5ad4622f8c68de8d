"""A few held-out images with their boxes and those that networks find, as one picture for the report.

Masks, where boxes have some, lie over the image in the colour of their class.
"""

from collections.abc import Callable, Mapping

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from wbar_training.data.augment import Preparer
from wbar_training.data.boxes import CLASS, CORNERS, NO_BOX, BoxSplit
from wbar_training.tasks.mask_overlaps import INSIDE
from wbar_training.tasks.mask_picture import EDGE, HEAD, IMAGES, INK, PAPER, SIDE, palette

SURE = 0.5  # the least score of a box that is drawn
TINT = 0.5  # of a mask's colour over the image
Boxes = list[tuple[int, list[float], Tensor | None]]  # class; left, top, right, bottom in pixels; mask, (H, W) bool


class BoxPicture:
    """The first, the last and evenly spread held-out images between them.

    model: that is filled with weights, and left with the last.
    """

    def __init__(self, model: nn.Module, examples: BoxSplit, prepare: Preparer, names: list[str]) -> None:
        self.model, self.prepare, self.names = model, prepare, names
        count = min(IMAGES, len(examples))
        self.examples = examples.select(torch.linspace(0, len(examples) - 1, count).round().long())
        self.colours = palette(len(names))

    @torch.no_grad()
    def drawn(self, weights: Mapping[str, Callable[[], Mapping[str, Tensor]]]) -> Image.Image:
        """Return the picture: a row for each image, with columns for its labels, and the boxes by each of the weights."""
        count = len(self.examples)
        columns = {"labels": [self._drawn(index, self._labelled(index)) for index in range(count)]}
        for name, read in weights.items():
            self.model.load_state_dict(read())
            self.model.eval()
            columns[name] = [self._drawn(index, self._found(index)) for index in range(count)]
        sheet = Image.new("RGB", (len(columns) * (SIDE + EDGE), HEAD + count * (SIDE + EDGE)), PAPER)
        draw = ImageDraw.Draw(sheet)
        for column, (name, pictures) in enumerate(columns.items()):
            draw.text((column * (SIDE + EDGE) + 2, 2), name, fill=INK)
            for row, picture in enumerate(pictures):
                sheet.paste(picture, (column * (SIDE + EDGE), HEAD + row * (SIDE + EDGE)))
        return sheet

    def _labelled(self, index: int) -> Boxes:
        own = self.examples.labels[index]
        masks = self.examples.masks(index) if self.examples.runs else None
        return [
            (int(row[CLASS]), row[CORNERS].tolist(), None if masks is None else masks[place])
            for place, row in enumerate(own[own[:, CLASS] != NO_BOX])
        ]

    def _found(self, index: int) -> Boxes:
        found = self.model(list(self.examples.batch(slice(index, index + 1), self.prepare).inputs))[0]
        sure = (found["scores"] >= SURE).nonzero()[:, 0].tolist()
        masks = found["masks"][:, 0].cpu() > INSIDE if "masks" in found else None
        return [
            (int(found["labels"][one]), found["boxes"][one].tolist(), None if masks is None else masks[one])
            for one in sure
        ]

    def _drawn(self, index: int, boxes: Boxes) -> Image.Image:
        pixels = self.examples.image(index).expand(3, -1, -1).clone()
        for label, _, mask in boxes:
            if mask is not None:
                tint = self.colours[min(label, 255)][:, None].float()
                pixels[:, mask] = (TINT * tint + (1 - TINT) * pixels[:, mask]).to(torch.uint8)
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        scale = SIDE / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
        draw = ImageDraw.Draw(picture)
        for label, corners, _ in boxes:
            colour = tuple(self.colours[min(label, 255)].tolist())
            left, top, right, bottom = (scale * one for one in corners)
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
            draw.text(
                (left + 3, top + 1), self.names[label][:16] if label < len(self.names) else str(label), fill=colour
            )
        return picture
