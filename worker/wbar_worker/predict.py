"""The child's side of predictions: hold one network, and answer request after request about images of strangers.

It is isolated and confined as readers of uploads are, and ends with its worker or when the pipe of its orders closes.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from wbar.errors import Rejected
from wbar.predictions import Answered, NotAnswered, PredictedNetwork
from wbar_training.data.augment import RESIZED, Preparer
from wbar_training.data.decoding import decode
from wbar_training.data.packed import Fit, fitted
from wbar_training.losses import class_logits
from wbar_training.networks import architectures
from wbar_training.networks.fresh_layers import prepared
from wbar_training.networks.programs import learn_from
from wbar_training.networks.tensors import read_tensors
from wbar_training.swag_file import DrawnNetworks
from wbar_training.uploads.image_checks import inspected
from wbar_training.uploads.limits import UploadLimits
from wbar_worker.prediction_messages import PredictWork, Ready
from wbar_worker.processes import ControlChannel, confine, first_line


def predict_images(work: PredictWork, channel: ControlChannel) -> None:
    """Load the network, and answer until the orders end."""
    confine(work.memory, work.seconds, work.memory)
    torch.set_num_threads(work.threads)
    try:
        asked = _Asked(work.network, work.weights, work.pixels)
    except Exception as error:
        logging.getLogger("wbar").exception("the network could not be loaded")
        channel.send(NotAnswered(message=f"the network could not be loaded ({first_line(error)})"))
        return
    channel.send(Ready())
    while True:
        try:
            images = [work.orders.recv_bytes() for _ in range(int(work.orders.recv_bytes()))]
        except EOFError:
            return
        channel.send(asked.answer(images))


class _Asked:
    """One network in eval mode, and how images become its inputs. pixels: the most that an image may have."""

    def __init__(self, network: PredictedNetwork, weights: Path, pixels: int) -> None:
        self.network, self._limits = network, UploadLimits(pixels=pixels)
        self._networks: Iterable[nn.Module] = _networks(network, weights)
        self._prepare = Preparer(network.mean, network.std, "none", 0, torch.device("cpu"))

    def answer(self, images: list[bytes]) -> Answered | NotAnswered:
        pixels = list[Tensor]()
        for index, data in enumerate(images):
            try:
                inspected([(f"images/{index}", data)], self._limits)
                pixels.append(self._pixels(data))
            except Rejected as error:
                return NotAnswered(message=error.detail, index=index)
            except MemoryError:
                return NotAnswered(message=f"images/{index} needs more memory than a request may use", index=index)
        try:
            with torch.no_grad():
                return self._answered(self._prepare.plain(torch.stack(pixels)))
        except (RuntimeError, MemoryError, ValueError) as error:
            logging.getLogger("wbar").exception("the network failed")
            return NotAnswered(message=f"the network failed on these images ({first_line(error)})")

    def _answered(self, inputs: Tensor) -> Answered | NotAnswered:
        """Ask each network, and keep mean and spread alone (Welford 1962)."""
        count, mean, squares = 0, torch.zeros(()), torch.zeros(())
        for model in self._networks:
            outputs = model(inputs).double()
            one_class = self.network.task == "classification"
            probabilities = class_logits(outputs).softmax(dim=1) if one_class else outputs.sigmoid()
            if not bool(torch.isfinite(probabilities).all()):
                return NotAnswered(message="the network's outputs on these images are not finite")
            count += 1
            away = probabilities - mean
            mean = mean + away / count
            squares = squares + away * (probabilities - mean)
        deviations = (squares / count).sqrt().tolist() if count > 1 else None
        return Answered(probabilities=mean.tolist(), deviations=deviations)

    def _pixels(self, data: bytes) -> Tensor:
        network = self.network
        image = decode(data, 1 if network.weights.network.channels == 1 else 3)
        fit = Fit(network.crop_ratio, network.interpolation)
        return fitted(image, network.image_size, network.augment in RESIZED, fit)


def _of_part(prefix: str, name: str) -> str:
    """Return the name of one of the Gaussian's tensors without the upload's prefix, which stands behind the part's name."""
    part, _, uploaded = name.partition(".")
    return f"{part}.{uploaded.removeprefix(prefix)}"


def _networks(network: PredictedNetwork, path: Path) -> Iterable[nn.Module]:
    """Return the networks to be asked, in eval mode: one, or those that are drawn."""
    weights = network.weights
    if weights.network.program is not None:
        learn_from(path)
    tensors = read_tensors(path)
    if network.draws:
        tensors = {_of_part(weights.prefix, name): tensor for name, tensor in tensors.items()}
        return DrawnNetworks(weights.network, tensors, network.seed, network.draws)
    tensors = {name.removeprefix(weights.prefix): tensor for name, tensor in tensors.items()}
    if network.recipe is None:
        return [architectures.load(weights.network, tensors)[0].eval()]
    own = architectures.own_names(weights.network, tensors)
    own_tensors = {own[name]: tensor for name, tensor in tensors.items() if name in own}
    return [prepared(weights.network, own_tensors, network.recipe, network.seed).eval()]
