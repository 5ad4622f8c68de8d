"""The child's side of predictions: hold one network, and answer request after request about images of strangers.

It is isolated and confined as readers of uploads are, and ends with its worker or when the pipe of its orders closes.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from wbar.predictions import NotAnswered, PredictedNetwork
from wbar_training.networks import architectures
from wbar_training.networks.fresh_layers import prepared
from wbar_training.networks.programs import learn_from
from wbar_training.networks.tensors import read_tensors
from wbar_training.swag_file import DrawnNetworks
from wbar_worker.answering import ANSWERING
from wbar_worker.prediction_messages import Order, PredictWork, Ready
from wbar_worker.processes import ControlChannel, confine, first_line


def predict_images(work: PredictWork, channel: ControlChannel) -> None:
    """Load the network, and answer until the orders end."""
    confine(work.memory, work.seconds, work.memory)
    torch.set_num_threads(work.threads)
    try:
        networks = _networks(work.network, work.weights)
    except Exception as error:
        logging.getLogger("wbar").exception("the network could not be loaded")
        channel.send(NotAnswered(message=f"the network could not be loaded ({first_line(error)})"))
        return
    asked = ANSWERING[work.network.task](work.network, networks, work.pixels)
    channel.send(Ready())
    while True:
        try:
            order = Order.model_validate_json(work.orders.recv_bytes())
            images = [work.orders.recv_bytes() for _ in range(order.images)]
        except EOFError:
            return
        channel.send(asked.answer(images, order.wanted))


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
