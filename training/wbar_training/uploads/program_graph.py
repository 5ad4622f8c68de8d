"""The graph in an archive of torch.export: from torch's JSON to operations, arguments and names. Nothing of it is evaluated.

The JSON is `ExportedProgram` of torch/_export/serde/schema.py, major versions 5 to 8. Expressions of symbolic sizes are read
in two places only, and as text: a size is free if its text is one plain symbol.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wbar.errors import CorruptFile, UnsupportedProgram
from wbar_averaging.quoting import quoted
from wbar_training.networks.programs import Dtype, Interface, Named, Node, Of, Value

# torch's numbers for them in the JSON: ScalarType, MemoryFormat, Layout.
DTYPES: dict[int, Dtype] = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16",
}  # fmt: skip
_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7
_MAJORS = range(5, 9)
_SYMBOL = re.compile(r"(?:Symbol\('(\w{1,40})'(?:, \w+=\w+)*\)|(\w{1,40}))")
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}
GUIDE = "the guide says how to export one (Networks of your own)"


@dataclass(frozen=True)
class Graph:
    """The graph of a network for images.

    state, constants: by their names in the network, the values of the graph that they are.
    kinds: of these values, torch's dtype and shape.
    """

    interface: Interface
    state: dict[str, str]
    is_parameter: dict[str, bool]
    constants: dict[str, str]
    kinds: dict[str, tuple[Dtype, tuple[int, ...]]]
    nodes: tuple[Node, ...]


@dataclass(frozen=True)
class _Signature:
    state: dict[str, str]
    is_parameter: dict[str, bool]
    constants: dict[str, str]
    inputs: list[str]
    outputs: list[str]


def parse(document: Any, name: str) -> Graph:
    """Return the graph in the JSON of a program.

    name: of its file, for messages.

    Raises UnsupportedProgram for a program that is no network for images; CorruptFile, or what a mapping raises for a key
    that it does not have, where it is not as torch writes it.
    """
    major = document["schema_version"]["major"]
    if major not in _MAJORS:
        raise UnsupportedProgram(
            f"{quoted(name)} is of version {quoted(major)} of torch's format, and {_MAJORS[0]} to {_MAJORS[-1]} are read: "
            f"export it "
            "with another torch"
        )
    module = document["graph_module"]
    graph, signature = module["graph"], _signature(module["signature"])
    if len(signature.inputs) != 1:
        raise UnsupportedProgram(
            f"the network takes {len(signature.inputs)} inputs, and jobs have one: images, (N, channels, height, width); "
            f"{GUIDE}"
        )
    if len(signature.outputs) != 1:
        raise UnsupportedProgram(
            f"the network gives {len(signature.outputs)} outputs, and one is expected: logits, (N, classes); leave the "
            f"others out"
        )
    ranges = document.get("range_constraints") or {}
    (first,), (last,) = signature.inputs, signature.outputs
    batch, channels, height, width, free, least = _images(graph["tensor_values"][first], ranges)
    classes = _classes(graph["tensor_values"][last], batch)
    return Graph(
        interface=Interface(channels, height, width, free, least, classes, input=first, output=last),
        state=signature.state,
        is_parameter=signature.is_parameter,
        constants=signature.constants,
        kinds={
            value: _kind(graph["tensor_values"][value], value)
            for value in (*signature.state.values(), *signature.constants.values())
        },
        nodes=tuple(map(_node, graph["nodes"])),
    )


def _signature(signature: Mapping[str, Any]) -> _Signature:
    made = _Signature({}, {}, {}, [], [])
    for spec in signature["input_specs"]:
        ((kind, content),) = spec.items()
        if kind == "parameter":
            made.state[_text(content["parameter_name"])] = _text(content["arg"]["name"])
            made.is_parameter[content["parameter_name"]] = True
        elif kind == "buffer":
            persistent = content.get("persistent") is not False
            (made.state if persistent else made.constants)[_text(content["buffer_name"])] = _text(
                content["arg"]["name"]
            )
            made.is_parameter[content["buffer_name"]] = False
        elif kind == "tensor_constant":
            made.constants[_text(content["tensor_constant_name"])] = _text(content["arg"]["name"])
        elif kind == "user_input" and "as_tensor" in content["arg"]:
            made.inputs.append(_text(content["arg"]["as_tensor"]["name"]))
        elif kind in ("custom_obj", "token"):
            raise UnsupportedProgram(
                "the program has an object of a class of its own (ScriptObject), which is code: only tensors are read"
            )
        else:
            raise UnsupportedProgram(
                f"the network takes an input that is no tensor ({quoted(kind)}): jobs give it images alone; {GUIDE}"
            )
    for spec in signature["output_specs"]:
        ((kind, content),) = spec.items()
        if kind != "user_output":
            raise UnsupportedProgram(
                f"the program hands back its changed tensors ({quoted(kind)}): it was taken apart for inference; export it "
                f"with "
                "torch.export.export(model.train(), …) of torch 2.6 or later, without run_decompositions"
            )
        if "as_tensor" not in content["arg"]:
            raise UnsupportedProgram(
                "the network gives an output that is no tensor: logits, (N, classes), are expected"
            )
        made.outputs.append(_text(content["arg"]["as_tensor"]["name"]))
    return made


def _kind(meta: Mapping[str, Any], value: str) -> tuple[Dtype, tuple[int, ...]]:
    dtype = DTYPES.get(meta["dtype"])
    if dtype is None:
        raise UnsupportedProgram(f"{quoted(value)} is of torch's type {quoted(meta['dtype'])}, which is not read")
    return dtype, tuple(number(one, value) for one in meta["sizes"])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise CorruptFile(f"the program has {quoted(value)} where a name is expected")
    return value


def _images(meta: Mapping[str, Any], ranges: Mapping[str, Any]) -> tuple[str, int, int, int, bool, int]:
    """Return the symbol of the batch, channels, height and width, whether these are free, and the least side."""
    sizes = meta["sizes"]
    if DTYPES.get(meta["dtype"]) != "float32" or len(sizes) != 4:
        raise UnsupportedProgram(
            f"the input is {DTYPES.get(meta['dtype'], 'of another type')} with {len(sizes)} dimensions: float32 images (N, "
            f"channels, "
            f"height, width) are expected; {GUIDE}"
        )
    batch, least, most = _free(sizes[0], ranges)
    if batch is None:
        raise UnsupportedProgram(
            f"the batch size is fixed ({_shown(sizes[0])}), and a job's batches have other sizes: export the network with "
            'dynamic_shapes=({0: torch.export.Dim("batch")},), and with two example images or more'
        )
    if least > 2 or most is not None:
        raise UnsupportedProgram(
            f"the batch size is bounded ({least} to {most}), and a job's batches are of any size: leave min and max out of "
            'torch.export.Dim("batch")'
        )
    channels = number(sizes[1], "the input")
    sides = [_free(one, ranges) for one in sizes[2:]]
    height, width = (_hint(one) for one in sizes[2:])
    free = all(symbol is not None for symbol, _, _ in sides)
    if any(most is not None for _, _, most in sides) or (
        not free and any(symbol is not None for symbol, _, _ in sides)
    ):
        raise UnsupportedProgram(
            "height or width is bounded, or only one of them is free: export with both fixed, or both free (torch.export.Dim "
            "without max)"
        )
    if height != width or min(channels, height) < 1:
        raise UnsupportedProgram(
            f"the images are {channels} x {height} x {width}, and a network takes square ones here: {GUIDE}"
        )
    return batch, channels, height, width, free, max(1, *(least for _, least, _ in sides)) if free else height


def _classes(meta: Mapping[str, Any], batch: str) -> int:
    sizes = meta["sizes"]
    plain = len(sizes) == 2 and _symbol(sizes[0]) == batch and "as_int" in sizes[1]
    if not plain or DTYPES.get(meta["dtype"]) != "float32" or sizes[1]["as_int"] < 1:
        raise UnsupportedProgram(
            f"the output has the sizes ({', '.join(map(_shown, sizes))}) and is "
            f"{DTYPES.get(meta['dtype'], 'of another type')}: "
            "float32 logits (N, classes) are expected, before softmax"
        )
    return number(sizes[1], "the output")


def number(size: Any, name: str) -> int:
    """Return a size that is a number. Raises UnsupportedProgram for an expression."""
    if not isinstance(size, Mapping) or type(size.get("as_int")) is not int:
        raise UnsupportedProgram(f"a size of {quoted(name)} is {_shown(size)}, and a number is expected there")
    return int(size["as_int"])


def _symbol(size: Mapping[str, Any]) -> str | None:
    """Return the symbol that a size is; None for a number, and for an expression."""
    expression = (size.get("as_expr") or {}).get("expr_str")
    match = _SYMBOL.fullmatch(expression) if isinstance(expression, str) else None
    return (match[1] or match[2]) if match else None


def _free(size: Mapping[str, Any], ranges: Mapping[str, Any]) -> tuple[str | None, int, int | None]:
    """Return the symbol that a size is, its least value, and its greatest; None for a number, or where it is not bounded."""
    symbol = _symbol(size)
    if symbol is None:
        if "as_int" not in size:
            raise UnsupportedProgram(
                f"a size of the input is {_shown(size)}: a free size of its own, or a number, is expected"
            )
        return None, 0, None
    bounds = ranges.get(symbol) or {}
    least, most = bounds.get("min_val"), bounds.get("max_val")
    return symbol, least if isinstance(least, int) else 0, most if isinstance(most, int) else None


def _hint(size: Mapping[str, Any]) -> int:
    """Return the size that a free side had when the network was exported."""
    return number(size["as_expr"]["hint"] if "as_expr" in size else size, "the input")


def _shown(size: Any) -> str:
    if isinstance(size, Mapping) and "as_int" in size:
        return quoted(size["as_int"])[1:-1]
    return quoted(size.get("as_expr", {}).get("expr_str") if isinstance(size, Mapping) else size)


def _node(node: Mapping[str, Any]) -> Node:
    target = _text(node["target"]).removeprefix("torch.ops.")
    arguments: dict[str, Value] = {}
    for given in node["inputs"]:
        name = given["name"]
        arguments[name if name else f"{len(arguments)}"] = _value(given["arg"], target)
    outputs = [name for one in node["outputs"] for name in _outputs(one, target)]
    return Node(target, arguments, tuple(outputs))


def _outputs(output: Mapping[str, Any], target: str) -> list[str]:
    ((kind, content),) = output.items()
    if kind == "as_none":
        return []
    if kind == "as_tensor":
        return [_text(content["name"])]
    if kind == "as_tensors":
        return [_text(one["name"]) for one in content]
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return [_text(content["as_name"])]
    raise _refused(kind, target)


def _value(argument: Mapping[str, Any], target: str) -> Value:
    """Return an argument. Raises UnsupportedProgram for objects, graphs and other code."""
    ((kind, content),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return Of(_text(content["name"]))
        case "as_tensors":
            return tuple(Of(_text(one["name"])) for one in content)
        case "as_optional_tensors":
            return tuple(Of(_text(one["as_tensor"]["name"])) if "as_tensor" in one else None for one in content)
        case "as_optional_tensor":
            return Of(_text(content["as_tensor"]["name"])) if "as_tensor" in content else None
        case "as_int" | "as_bool" | "as_string":
            plain: int | bool | str = _plain(content, {"as_int": int, "as_bool": bool, "as_string": str}[kind])
            return plain
        case "as_float":
            return _float(content)
        case "as_ints" | "as_bools" | "as_strings":
            return tuple(_plain(one, {"as_ints": int, "as_bools": bool, "as_strings": str}[kind]) for one in content)
        case "as_floats":
            return tuple(map(_float, content))
        case "as_sym_int" | "as_sym_bool" | "as_sym_float":
            return _symbolic(content)
        case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
            return tuple(map(_symbolic, content))
        case "as_scalar_type" if content in DTYPES:
            return Named("dtype", DTYPES[content])
        case "as_memory_format" if content in _FORMATS:
            return Named("memory_format", _FORMATS[content])
        case "as_layout" if content == _STRIDED:
            return Named("layout", "strided")
        case "as_device":
            return Named("device", "")
    raise _refused(kind, target)


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise CorruptFile(f"the program has {quoted(value)} where {kind.__name__} is expected")
    return value


def _float(value: Any) -> float:
    if isinstance(value, str) and value in _FLOATS:
        return _FLOATS[value]
    return float(value) if type(value) is int else float(_plain(value, float))


def _symbolic(value: Mapping[str, Any]) -> Value:
    ((kind, content),) = value.items()
    if kind == "as_name":
        return Of(_text(content))
    if kind == "as_float":
        return _float(content)
    plain: int | bool = _plain(content, {"as_int": int, "as_bool": bool}[kind])
    return plain


def _refused(kind: str, target: str) -> UnsupportedProgram:
    if kind == "as_graph":
        return UnsupportedProgram(
            f"{quoted(target)} chooses between graphs: control flow that depends on data is not run; write the forward pass "
            f"without it"
        )
    if kind in ("as_custom_obj", "as_operator"):
        return UnsupportedProgram(
            f"{quoted(target)} takes an object or an operation as an argument, which is code: that is not run"
        )
    return UnsupportedProgram(f"{quoted(target)} takes an argument that is not read ({quoted(kind)})")
