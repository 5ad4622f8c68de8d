"""The rules of programs that can be trained: what their operations may be, and what they may change.

A stranger wrote the program, so every rule is checked before an operation of it runs, on the names alone. What each value is
made of follows from the graph: a value that shares memory with a weight, a constant or the input must not be written to,
since a job keeps weights in its state and constants nowhere, and the next step has the same images.
"""

import re
from collections import Counter
from typing import NoReturn

from wbar.errors import UnsupportedProgram
from wbar_averaging.quoting import quoted
from wbar_training.networks import operators
from wbar_training.networks.bounds import MOST_CLASSES, MOST_PIXELS
from wbar_training.networks.exported import DROPOUTS, names_in
from wbar_training.networks.programs import Node, Of, Program

TRAIN = "export it in training mode: torch.export.export(model.train(), …)"
NODES = 100_000
MOST_CHANNELS = 1024
# What torch's exporter makes of names stands in source text that it compiles, where a job's result is exported.
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)


def check(program: Program) -> None:
    """Raise UnsupportedProgram for a program that cannot be trained, or that is not to be run; it names the operation."""
    if len(program.nodes) > NODES:
        raise UnsupportedProgram(f"the program has {len(program.nodes)} operations, more than the limit of {NODES}")
    _check_sizes(program)
    if not any(one.parameter for one in program.state.values()):
        raise UnsupportedProgram("the program has no parameters: there is nothing to train")
    names = [*program.state, *program.constants, *(name for one in program.state.values() for name in one.tied)]
    odd = next((name for name in names if not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise UnsupportedProgram(
            f"{quoted(odd)} cannot name a tensor of an exported network: letters, digits and underscores can, between dots"
        )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise UnsupportedProgram(f"two tensors of the program are named {quoted(twice)}")
    reserved = next((name for name in names if name.split(".")[0] == DROPOUTS), None)
    if reserved is not None:
        raise UnsupportedProgram(
            f"{quoted(reserved)} is a name that the network's own layers have: rename the attribute"
        )
    kept = {
        program.input,
        *(one.value for one in program.state.values()),
        *(one.value for one in program.constants.values()),
    }
    known, shared = set(kept), set(kept)
    for node in program.nodes:
        used = set(names_in(tuple(node.arguments.values())))
        if used - known:
            raise UnsupportedProgram(
                f"{quoted(node.target)} uses {quoted(min(used - known))} before anything computes it"
            )
        if set(node.outputs) & known:
            raise UnsupportedProgram(f"two operations compute {quoted(min(set(node.outputs) & known))}")
        _check_node(node)
        _check_writes(program, node, shared)
        known |= set(node.outputs)
        if used & shared and _may_alias(node):
            shared |= set(node.outputs)
    if program.output not in known - kept:
        raise UnsupportedProgram(f"no operation computes the output {quoted(program.output)}")
    _check_noise(program)


def _check_sizes(program: Program) -> None:
    height, width, least = program.height, program.width, program.min_size
    if not 0 < least <= height == width <= MOST_PIXELS:
        raise UnsupportedProgram(
            f"the program is of images of {height} x {width}, and of {least} pixels a side at least: square ones of up to "
            f"{MOST_PIXELS} can be taken"
        )
    for what, number, most in (
        ("channels", program.channels, MOST_CHANNELS), ("classes", program.classes, MOST_CLASSES),
    ):  # fmt: skip
        if not 0 < number <= most:
            raise UnsupportedProgram(f"the program has {number} {what}: 1 to {most} can be taken")


def _check_node(node: Node) -> None:
    target, kind = node.target, operators.base(node.target)
    if not operators.is_allowed(target):
        _refuse(target)
    if not node.outputs and target not in operators.CHECKS:
        raise UnsupportedProgram(f"{quoted(target)} has no result")
    if kind == "batch_norm" and node.arguments.get("training") is not True:
        raise UnsupportedProgram(
            f"{quoted(node.outputs[0])} is a batch_norm that keeps its statistics: the network was exported in evaluation "
            f"mode, in "
            f"which it cannot be trained; {TRAIN}"
        )
    if kind.removesuffix("_") in operators.DROPOUTS and node.arguments.get("train") is not True:
        raise UnsupportedProgram(
            f"{quoted(node.outputs[0])} is a dropout that is switched off: the network was exported in evaluation mode; {TRAIN}"
        )
    if kind == "instance_norm" and node.arguments.get("running_mean") is not None:
        raise UnsupportedProgram(
            f"{quoted(node.outputs[0])} is an instance_norm with running statistics, which are not recomputed for an "
            f"average: use "
            "track_running_stats=False, its default"
        )


def _refuse(target: str) -> NoReturn:
    if target.startswith("higher_order."):
        raise UnsupportedProgram(
            f"the program has {quoted(target)}: control flow that depends on data, or a part with other rules (no_grad, "
            f"autocast, "
            "checkpointing), which is not run; write the forward pass without it, and export again"
        )
    if operators.DECOMPOSED.match(operators.base(target)):
        raise UnsupportedProgram(
            f"the program has {quoted(target)}: it was taken apart for inference (run_decompositions, or export before "
            f"torch 2.5), "
            f"in which form it cannot be trained; {TRAIN}, without run_decompositions"
        )
    if operators.base(target):
        raise UnsupportedProgram(
            f"the program has {quoted(target)}, which is not among the operations that are run for strangers: those of "
            f"networks for "
            "images, without random numbers other than dropout's and stochastic depth's"
        )
    raise UnsupportedProgram(
        f"the program has the custom operation {quoted(target)}, which is code of its own: only torch's (aten) are run"
    )


def _check_writes(program: Program, node: Node, shared: set[str]) -> None:
    kind = operators.base(node.target)
    if not kind.endswith("_") or kind.endswith("__"):
        return
    written = node.arguments.get("self", node.arguments.get("input"))
    if not isinstance(written, Of) or written.of not in shared:
        return
    names = {one.value: name for name, one in program.state.items()}
    name = names.get(written.of, "")
    if kind == "add_" and name.endswith("num_batches_tracked"):
        return
    raise UnsupportedProgram(
        f"{quoted(node.target)} writes to {quoted(name or written.of)}, which is a weight, a constant or the input, or a "
        f"part of one: "
        "a network that changes its own tensors beside BatchNorm's statistics cannot be averaged; leave that out of the "
        "forward pass"
    )


def _may_alias(node: Node) -> bool:
    """Return whether a result of an operation may share memory with an argument."""
    kind = operators.base(node.target)
    operation = operators.found(node.target)
    if operation is None or not kind:
        return True  # a member of a list is what the list has
    returns = operation._schema.returns  # type: ignore[attr-defined]
    return kind in operators.MAY_ALIAS or any(one.alias_info is not None for one in returns)


def _check_noise(program: Program) -> None:
    """Check that noise is stochastic depth's: memory filled with ones at a rate p at once, and divided by p.

    In evaluation the noise is p, its expectation, so that the branch is multiplied by 1. What the noise is written into may
    have no other name, under which it would be used without the division.
    """
    users: dict[str, list[Node]] = {}
    makers: dict[str, Node] = {}
    for node in program.nodes:
        makers |= dict.fromkeys(node.outputs, node)
        for name in set(names_in(tuple(node.arguments.values()))):
            users.setdefault(name, []).append(node)
    for node in program.nodes:
        kind = operators.base(node.target)
        if kind in operators.EMPTY and [operators.base(n.target) for n in users.get(node.outputs[0], [])] != [
            "bernoulli_"
        ]:
            raise UnsupportedProgram(
                f"{quoted(node.outputs[0])} is memory as it was left, which only noise of stochastic depth is made in: use "
                f"zeros"
            )
        if kind != operators.BERNOULLI:
            continue
        memory = node.arguments.get("self")
        maker = makers.get(memory.of) if isinstance(memory, Of) else None
        if maker is None or _may_alias(maker) or len(maker.outputs) != 1 or users[maker.outputs[0]] != [node]:
            raise UnsupportedProgram(
                f"{quoted(node.outputs[0])} is random noise that is written into {quoted(getattr(memory, 'of', memory))}, "
                "which the network uses elsewhere, or which is a part of something else: make it in memory of its own, "
                "torch.empty_like(x).bernoulli_(p)"
            )
        rate, after = node.arguments.get("p"), users.get(node.outputs[0], [])
        scaled = [n for n in after if operators.base(n.target) in ("div", "div_") and n.arguments.get("other") == rate]
        plain = isinstance(rate, float) and 0 < rate <= 1
        if not plain or not after or (after != scaled and rate != 1):
            raise UnsupportedProgram(
                f"{quoted(node.outputs[0])} is random noise that is not divided by its rate, as stochastic depth's is: it "
                f"could not be "
                "switched off for evaluation"
            )
