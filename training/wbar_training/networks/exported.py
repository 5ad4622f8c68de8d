"""The module of an exported program: its operations one after another, on tensors under the names that it was exported with.

Nothing is generated and nothing is evaluated as code: a list of operations is walked. What training has to get hold of is a
module of torch's own:

- `batch_norm` is an `nn.BatchNorm`, which is switched between training and evaluation, and whose statistics are recomputed;
- `dropout` is an `nn.Dropout`; noise of stochastic depth is its expectation in evaluation;
- tensors of convolutions, linear maps and normalizations belong to modules of these classes, which weight decay, rates by
  depth and fresh layers go by. They are computed by the program's own operation all the same.
"""

import base64
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from wbar.errors import NothingMatches, UnsupportedProgram
from wbar_averaging.quoting import quoted, reason
from wbar_training.networks import operators
from wbar_training.networks.program_layers import AnyBatchNorm, holder_of, owner_of
from wbar_training.networks.programs import Constant, Named, Node, Of, Program, Value

DROPOUTS = "wbar_dropouts"  # a list in the module, which no tensor of a program may lie in
_DROPOUTS: dict[str, type[nn.modules.dropout._DropoutNd]] = {
    "dropout": nn.Dropout, "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout, "feature_alpha_dropout": nn.FeatureAlphaDropout,
}  # fmt: skip
_KINDS: dict[str, type] = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}
_NAMED = {"dtype": "ScalarType", "memory_format": "MemoryFormat", "layout": "Layout", "device": "Device"}  # in schemas
_OWN = ("weight", "bias", "running_mean", "running_var")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class _Device:
    """Stands for the device that the input is on."""


class _Step:
    """One operation. run: takes the module and its arguments. gone: values that are not needed after it."""

    def __init__(self, node: Node, run: Callable[..., Any], gone: tuple[str, ...]) -> None:
        self.outputs, self.run, self.gone = node.outputs, run, gone
        self.given = {name: _resolved(value) for name, value in node.arguments.items()}
        self.open = tuple(name for name, value in self.given.items() if _is_open(value))


def _resolved(value: Value) -> Any:
    """Return an argument with what torch has names for looked up."""
    if isinstance(value, tuple):
        return [_resolved(one) for one in value]
    if not isinstance(value, Named):
        return value
    if value.kind == "device":
        return _Device()
    found = getattr(torch, value.name, None)
    if not isinstance(found, _KINDS[value.kind]):
        raise UnsupportedProgram(f"{quoted(value.name)} is no {value.kind} that this torch has")
    return found


def _is_open(value: Any) -> bool:
    return any(map(_is_open, value)) if isinstance(value, list) else isinstance(value, Of | _Device)


class ExportedNetwork(nn.Module):
    """A program as a module: (N, channels, height, width) float32 to (N, classes) logits.

    classes: other than the program's, where it ends with a linear map, which then has that many rows.

    Raises UnsupportedProgram naming the operation or the tensor that cannot be had; NothingMatches where it cannot have that
    many classes.
    """

    def __init__(self, program: Program, classes: int | None = None) -> None:
        super().__init__()
        self._steps: list[_Step] = []  # at first: no tensor may have such a name
        self._paths: dict[str, tuple[str, ...]] = {}
        self._input, self._output = program.input, Of(program.output)
        self.add_module(DROPOUTS, nn.ModuleList())
        program = program if classes is None else with_classes(program, classes)
        state = program.state
        builder = _Builder(self, program)
        builder.place()
        self._paths |= {one.value: tuple(name.split(".")) for name, one in state.items()}
        self._paths |= {one.value: tuple(name.split(".")) for name, one in program.constants.items()}
        self._steps = builder.steps()

    def forward(self, x: Tensor) -> Any:
        """Return the logits (N, classes) of images (N, C, H, W), normalized."""
        values: dict[str, Any] = {self._input: x}
        for step in self._steps:
            given = dict(step.given)
            for name in step.open:
                given[name] = _argument(self, given[name], values, x.device)
            results = step.run(self, given)
            if len(step.outputs) == 1:
                results = (results,)
            values.update(zip(step.outputs, results, strict=True))
            for name in step.gone:
                del values[name]
        return _argument(self, self._output, values, x.device)

    def at(self, path: tuple[str, ...]) -> Any:
        """Return a module or tensor by its path, at this moment: what a job puts in the place of a module is used, too."""
        return reduce(getattr, path, self)


# Outside of `forward`: a function in it that calls itself would keep the outputs, and with them every value that autograd
# needs, until a garbage collection; a CUDA graph cannot be captured meanwhile.
def _argument(network: ExportedNetwork, value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    """Return an argument with what it names in its place: a value, a tensor of the network, the input's device."""
    if isinstance(value, Of):
        return values[value.of] if value.of in values else network.at(network._paths[value.of])
    if isinstance(value, list):
        return [_argument(network, one, values, device) for one in value]
    return device if isinstance(value, _Device) else value


def head_of(program: Program, classes: int) -> list[str]:
    """Return the names of the tensors of the linear map that a program ends with.

    classes: that it is to have, for the error: NothingMatches where it does not end with one.
    """
    last = next((node for node in program.nodes if program.output in node.outputs), None)
    names = {one.value: name for name, one in program.state.items()}
    if last is not None and operators.base(last.target) == "linear":
        used = [last.arguments.get(name) for name in ("weight", "bias")]
        head = [names[one.of] for one in used if isinstance(one, Of) and one.of in names]
        alone = all(_uses(program, program.state[name].value) == 1 for name in head)
        if len(head) == sum(isinstance(one, Of) for one in used) and head and alone:
            return head
    raise NothingMatches(
        f"the exported network has {program.classes} outputs and does not end with a linear map of its own: it cannot get a "
        f"new "
        f"head of {classes}; export the network with {classes} outputs"
    )


def with_classes(program: Program, classes: int) -> Program:
    """Return a program whose last linear map has another number of rows. Raises NothingMatches where it has none."""
    if classes == program.classes:
        return program
    state = dict(program.state)
    for name in head_of(program, classes):
        state[name] = replace(state[name], shape=(classes, *state[name].shape[1:]))
    return replace(program, classes=classes, state=state)


def _uses(program: Program, value: str) -> int:
    return sum(one == value for node in program.nodes for one in names_in(tuple(node.arguments.values())))


def names_in(value: Value) -> Iterator[str]:
    """Yield the values of the graph that an argument names."""
    if isinstance(value, Of):
        yield value.of
    elif isinstance(value, tuple):
        for one in value:
            yield from names_in(one)


class _Builder:
    """Puts the tensors and the operations of a program into a module."""

    def __init__(self, module: ExportedNetwork, program: Program) -> None:
        self.module, self.program, self.state = module, program, program.state
        self.names = {one.value: name for name, one in program.state.items()}
        self.owners = self._owners()
        self.set: set[str] = set()  # paths of BatchNorms whose momentum is set

    def place(self) -> None:
        """Make the modules that hold the tensors, and register these."""
        for name, one in self.state.items():
            owner, own = self._owner(name)
            tensor = torch.zeros(one.shape, dtype=getattr(torch, one.dtype))
            if own not in owner._parameters and own not in owner._buffers:
                register(owner, own, nn.Parameter(tensor) if one.parameter else tensor, name)
            for other in one.tied:
                holder, its = self._owner(other)
                register(holder, its, getattr(owner, own), other)
        for name, constant in self.program.constants.items():
            owner, own = self._owner(name)
            register(owner, own, tensor_of(constant), name, persistent=False)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        *path, own = name.split(".")
        module: nn.Module = self.module
        for depth, part in enumerate(path):
            whole = ".".join(path[: depth + 1])
            if part not in module._modules:
                made = self.owners.get(whole) or holder_of(self.state, whole)
                try:
                    module.add_module(part, made)
                except (KeyError, TypeError) as error:
                    raise _unnamed(name, error) from None
            inner = module._modules[part]
            assert inner is not None
            module = inner
        return module, own

    def _owners(self) -> dict[str, nn.Module]:
        """Return the modules of torch's own classes that hold tensors, by their paths."""
        owners: dict[str, nn.Module] = {}
        for node in self.program.nodes:
            kind = operators.base(node.target)
            name = next(filter(None, map(self._name, _held(node))), None)
            if name is None or name.rpartition(".")[0] in owners or not name.rpartition(".")[0]:
                continue
            path, _, own = name.rpartition(".")
            made = owner_of(kind, own, self.state[name].shape, node)
            expected = {own: tuple(tensor.shape) for own, tensor in made.state_dict().items()} if made else {}
            here = {
                other.removeprefix(f"{path}."): one.shape
                for other, one in self.state.items()
                if other.rpartition(".")[0] == path
            }
            if made is not None and all(expected.get(own) == one for own, one in here.items()):
                for own in expected.keys() - here.keys():
                    made.register_buffer(own, None) if own in _BUFFERS else made.register_parameter(own, None)
                owners[path] = made
        return owners

    def _name(self, value: Value) -> str | None:
        return self.names.get(value.of) if isinstance(value, Of) else None

    def steps(self) -> list[_Step]:
        """Return the operations. Raises UnsupportedProgram."""
        nodes = [node for node in self.program.nodes if not self._is_left_out(node)]
        needed: dict[str, int] = {}
        for place, node in enumerate(nodes):
            for name in (*node.outputs, *names_in(tuple(node.arguments.values()))):
                needed[name] = place
        needed.pop(self.program.output, None)
        gone: dict[int, list[str]] = {}
        made = {name for node in nodes for name in node.outputs}
        for name, place in needed.items():
            if name in made:
                gone.setdefault(place, []).append(name)
        return [_Step(node, self._run(node), tuple(gone.get(place, ()))) for place, node in enumerate(nodes)]

    def _is_left_out(self, node: Node) -> bool:
        """Whether a module does it (BatchNorm's counter), or nothing follows from it."""
        name = self._name(node.arguments.get("self")) or ""
        counts = operators.base(node.target) == "add_" and name.endswith("num_batches_tracked")
        return node.target in operators.CHECKS or counts

    def _run(self, node: Node) -> Callable[..., Any]:
        kind, operation = operators.base(node.target), operators.found(node.target)
        if operation is None:
            raise UnsupportedProgram(f"{quoted(node.target)} is no operation that this torch has and that is run")
        if kind:
            _check_schema(node, operation)
        if kind == "batch_norm":
            return self._batch_norm(node)
        if kind.removesuffix("_") in operators.DROPOUTS:
            return self._dropout(node, kind)
        if kind == operators.BERNOULLI:
            return _noise(node)
        if kind == "view" and "size" in node.arguments:
            # The same where both can be done; a view asks for an order in memory that another layout does not have.
            return lambda _, given: given["self"].reshape(given["size"])
        if kind == "scaled_dot_product_attention" and node.arguments.get("dropout_p"):
            return lambda module, given: operation(
                **given | {"dropout_p": given["dropout_p"] if module.training else 0.0}
            )
        if node.target == "_operator.getitem":
            return lambda _, given: operation(*given.values())
        if node.target in operators.NUMBERS:
            return lambda _, given: operators.number(operation(*map(_one_number, given.values())))
        return lambda _, given: operation(**given)

    def _batch_norm(self, node: Node) -> Callable[..., Any]:
        held = [self._name(value) for value in _held(node)]
        paths = {name.rpartition(".")[0] for name in held if name is not None}
        path = paths.pop() if len(paths) == 1 else ""
        module = self.owners.get(path)
        if not isinstance(module, AnyBatchNorm) or held != [f"{path}.{own}" if own else None for own in _own(held)]:
            raise UnsupportedProgram(
                f"the tensors of {quoted(node.outputs[0])} ({', '.join(filter(None, held)) or 'none'}) are not those of one "
                "BatchNorm module: its statistics could not be recomputed"
            )
        momentum, eps = _number(node, "momentum"), _number(node, "eps")
        if path in self.set and (module.momentum, module.eps) != (momentum, eps):
            raise UnsupportedProgram(f"{quoted(path)} is called with different momenta or epsilons")
        self.set.add(path)
        module.momentum, module.eps = momentum, eps
        if module.running_mean is None or module.running_var is None:
            raise UnsupportedProgram(
                f"{quoted(path)} is a BatchNorm without running statistics (track_running_stats=False): in evaluation the "
                "outputs for an image would depend on the images beside it"
            )
        at = tuple(path.split("."))
        return lambda network, given: network.at(at)(given["input"])

    def _dropout(self, node: Node, kind: str) -> Callable[..., Any]:
        layers = self.module.get_submodule(DROPOUTS)
        assert isinstance(layers, nn.ModuleList)
        rate = _number(node, "p")
        if not 0 <= rate <= 1:
            raise UnsupportedProgram(
                f"{quoted(node.outputs[0])} drops with probability {rate}, which is between 0 and 1"
            )
        layers.append(_DROPOUTS[kind.removesuffix("_")](rate, inplace=kind.endswith("_")))
        at = (DROPOUTS, str(len(layers) - 1))
        return lambda network, given: network.at(at)(given["input"] if "input" in given else given["self"])


def _noise(node: Node) -> Callable[..., Any]:
    """Return what makes noise of stochastic depth: zeros and ones in training; in evaluation their expectation."""
    rate = node.arguments["p"]

    def run(module: nn.Module, given: dict[str, Any]) -> Any:
        memory = given["self"]
        if not memory.is_floating_point():  # it could not hold the expectation: a whole branch would be left out
            raise UnsupportedProgram(
                f"{quoted(node.outputs[0])} is random noise of {memory.dtype}, which cannot hold its rate {rate}: make it in "
                "a floating-point dtype"
            )
        return memory.bernoulli_(rate) if module.training else memory.fill_(rate)

    return run


def _held(node: Node) -> list[Value]:
    """Return the arguments of an operation that a layer's own tensors are."""
    return [node.arguments.get(name) for name in _OWN[: 4 if operators.base(node.target) == "batch_norm" else 1]]


def _own(held: Sequence[str | None]) -> list[str | None]:
    """Return what tensors in these places of a BatchNorm are called, None where there is none."""
    return [own if name else None for own, name in zip(_OWN, held, strict=True)]


def _number(node: Node, name: str) -> float:
    value = node.arguments.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnsupportedProgram(f"{name} of {quoted(node.outputs[0])} is {quoted(value)}, and no number")
    return float(value)


def _one_number(value: Any) -> Any:
    """Return an operand of arithmetic on sizes. Raises ValueError for anything but one number."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise ValueError(f"arithmetic on sizes is given a {type(value).__name__}")
    return operators.number(value)


def _check_schema(node: Node, operation: Any) -> None:
    """Raise UnsupportedProgram for arguments that an operation does not have, lacks, or has as another kind.

    torch takes plain numbers for a dtype or a layout, and does not check them.
    """
    declared = {argument.name: argument for argument in operation._schema.arguments}
    unknown = node.arguments.keys() - declared.keys()
    missing = [n for n, one in declared.items() if n not in node.arguments and not one.has_default_value()]
    if unknown or missing:
        raise UnsupportedProgram(
            f"{node.target} of {quoted(node.outputs[0] if node.outputs else '')} has arguments {sorted(unknown)} that this "
            f"torch does not know, and lacks {missing}: export the network with a torch near {torch.__version__}"
        )
    for name, value in node.arguments.items():
        wanted = next((kind for kind, text in _NAMED.items() if text in str(declared[name].real_type)), None)
        here = value.kind if isinstance(value, Named) else None
        if value is not None and here != wanted:
            raise UnsupportedProgram(
                f"{name} of {node.target} is {quoted(value)}, and {wanted or 'no name of a dtype, layout or device'} is "
                "expected"
            )


def tensor_of(constant: Constant) -> Tensor:
    """Return a program's constant. Raises UnsupportedProgram where its numbers are not there."""
    try:
        data = bytearray(base64.b64decode(constant.data, validate=True))
        dtype = getattr(torch, constant.dtype)
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.zeros(0, dtype=dtype)
        return flat.reshape(constant.shape).clone()
    except (ValueError, RuntimeError) as error:
        raise UnsupportedProgram(f"the constant {quoted(constant.value)} cannot be read: {reason(error)}") from None


def register(owner: nn.Module, own: str, tensor: Tensor, name: str, persistent: bool = True) -> None:
    """Give a module a tensor of its own. name: in the network, for the error."""
    try:
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(own, tensor)
        else:
            owner.register_buffer(own, tensor, persistent)
    except (KeyError, TypeError) as error:
        raise _unnamed(name, error) from None


def _unnamed(name: str, error: Exception) -> UnsupportedProgram:
    return UnsupportedProgram(f"no module can have a tensor of the name {quoted(name)}: {reason(error)}")
