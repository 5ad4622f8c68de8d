"""Archives of torch.export: programs changed anywhere in their JSON, expressions and pickles that would run a command."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from tests.fuzz.inputs import BASES, Input, Source
from tests.fuzz.pickles import payload

Place = tuple[Any, Any]  # a list or an object of the JSON, and an index or a key of it
_JSON = ("models/model.json", "model_weights_config.json", "model_constants_config.json")


def program_input(source: Source) -> Input:
    """Return one archive made by hand, or changed in a few places of its JSON."""
    name, make, tolerant = source.draws.choice(_KINDS)
    data = make(source)
    # What is changed may still be a network; its weights are those that were uploaded.
    return Input(
        f"exported: {name}", "program", data, "numbers" if tolerant else "never", "exported" if tolerant else ""
    )


def _rewritten(change: Callable[[str, bytes], bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(BASES["exported"][2]())) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(
                zipfile.ZipInfo(entry.filename, (1980, 1, 1, 0, 0, 0)), change(entry.filename, old.read(entry))
            )
    return out.getvalue()


def _places(value: Any) -> Iterator[Place]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _strange(source: Source) -> Any:
    command = f"__import__('os').system({source.command()!r})"
    return source.draws.choice(
        (command, None, True, -1, 0, 2**31, 2**70, 1e308, float("nan"), "", "x", [], {}, [[]], "a" * 5000, "\ud800",
         "torch.ops.aten.from_file.default", {"as_int": 10**12}, {"as_none": True}, {"as_expr": {"expr_str": command}},
         {"as_string": command})
    )  # fmt: skip


def _changed(source: Source) -> bytes:
    wanted, times = source.draws.choice(_JSON), source.draws.randrange(1, 4)

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(wanted):
            return content
        document = json.loads(content)
        for _ in range(times):
            places = list(_places(document))
            if not places:
                break
            (holder, key), (_, other) = source.draws.choice(places), source.draws.choice(places)
            match source.draws.randrange(4):
                case 0:
                    del holder[key]
                case 1 if isinstance(holder, list):
                    holder.insert(key, holder[source.draws.randrange(len(holder))])
                case 2 if isinstance(holder, dict) and isinstance(other, str):
                    holder[other] = holder.pop(key)
                case _:
                    holder[key] = _strange(source)
        return json.dumps(document).encode()

    return _rewritten(change)


def _expression(source: Source) -> bytes:
    """Put a command where torch's own reader evaluates text; where the size of the batch is one, it is no free size."""
    command = f"__import__('os').system({source.command()!r})"

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(_JSON[0]):
            return content
        document = json.loads(content)
        graph = document["graph_module"]["graph"]
        given = document["graph_module"]["signature"]["input_specs"][-1]["user_input"]["arg"]["as_tensor"]["name"]
        graph["tensor_values"][given]["sizes"][0]["as_expr"]["expr_str"] = command
        document["guards_code"] = [command]
        return json.dumps(document).encode()

    return _rewritten(change)


def _pickled(source: Source) -> bytes:
    evil = payload(source)

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("data/weights/weight_0"):
            return evil
        if not name.endswith(_JSON[1]):
            return content
        config = json.loads(content)
        next(iter(config["config"].values()))["use_pickle"] = True
        return json.dumps(config).encode()

    return _rewritten(change)


def _old(source: Source) -> bytes:
    """The layout of torch 2.1 to 2.7, with a pickle that runs for its weights."""
    with zipfile.ZipFile(io.BytesIO(BASES["exported"][2]())) as archive:
        program = next(archive.read(name) for name in archive.namelist() if name.endswith(_JSON[0]))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("serialized_exported_program.json", program)
        archive.writestr("serialized_state_dict.pt", payload(source))
        archive.writestr("serialized_constants.pt", payload(source))
    return out.getvalue()


_KINDS: tuple[tuple[str, Callable[[Source], bytes], bool], ...] = (
    ("changed JSON", _changed, True),
    ("changed JSON", _changed, True),
    ("an expression", _expression, False),
    ("a pickle among the weights", _pickled, False),
    ("an old layout", _old, False),
)
