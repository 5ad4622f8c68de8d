"""A program is tried where it arrives: built, and taken through the passes that a job takes it through, on random images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wbar.errors import UnsupportedProgram
from wbar_averaging.quoting import quoted, reason
from wbar_training.networks import architectures, program_rules
from wbar_training.networks.programs import Program, learn

BATCHES = (2, 3)  # of other sizes than it may have been exported with
TOLERANCE = 1e-3  # between two orders of the same numbers in memory, of max(1, |logit|)


def try_out(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Build a program and train it for a pass. Raises UnsupportedProgram, with what went wrong.

    tensors: the weights, by their names in the network.
    """
    program_rules.check(program)
    _check_tied(program, tensors)
    network = learn(program)
    try:
        module, _ = architectures.load(network, tensors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for batch in BATCHES:
                _pass(module, torch.randn(batch, program.channels, program.height, program.width), program.classes)
    except (
        RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError, KeyError, AssertionError
    ) as error:  # fmt: skip
        if "can't allocate memory" in str(error):
            raise MemoryError from None
        raise UnsupportedProgram(
            f"the network fails on random images of {program.channels} x {program.height} x {program.width} "
            f"({type(error).__name__}: {reason(error)})"
        ) from None


def _check_tied(program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Raise UnsupportedProgram where a parameter has other numbers under another of its names."""
    for name, one in program.state.items():
        other = next((other for other in one.tied if not torch.equal(tensors[name], tensors[other])), None)
        if other is not None:
            raise UnsupportedProgram(
                f"{quoted(name)} and {quoted(other)} are one parameter in the program, and differ in the file: give both the "
                "same numbers (a merge that drops numbers at random, such as DARE, makes two of them)"
            )


def _pass(module: nn.Module, images: Tensor, classes: int) -> None:
    module.train()
    logits = module(images)
    _check(logits, len(images), classes)
    if not logits.requires_grad:
        raise UnsupportedProgram(
            "the output does not depend on a parameter that can be trained: is there a no_grad or a detach?"
        )
    logits.sum().backward()
    module.zero_grad()
    module.eval()
    with torch.inference_mode():
        plain, again = module(images), module(images)
        other = module(images.contiguous(memory_format=torch.channels_last))
        alone = torch.cat([module(images[place : place + 1]) for place in range(len(images))])
    _check(plain, len(images), classes)
    if classes > 1 and bool((plain >= 0).all()) and torch.allclose(plain.sum(dim=1), torch.ones(len(plain)), atol=1e-4):
        raise UnsupportedProgram(
            "the outputs are probabilities, and a job takes logits: export the network without the softmax at its end"
        )
    if not torch.equal(plain, again):
        raise UnsupportedProgram("the network gives other outputs each time in evaluation: something in it is random")
    if not torch.allclose(plain, alone, rtol=TOLERANCE, atol=TOLERANCE):
        raise UnsupportedProgram("in evaluation the outputs for an image depend on the images beside it")
    if not torch.allclose(plain, other, rtol=TOLERANCE, atol=TOLERANCE):
        raise UnsupportedProgram("the outputs depend on the order of the images' numbers in memory (channels_last)")


def _check(logits: object, images: int, classes: int) -> None:
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if not isinstance(logits, Tensor) or shape != (images, classes) or logits.dtype is not torch.float32:
        dtype = logits.dtype if isinstance(logits, Tensor) else ""
        raise UnsupportedProgram(
            f"the network gives {shape} {dtype} for {images} images, and says ({images}, {classes}) float32"
        )
