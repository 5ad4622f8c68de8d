"""Archives of torch.export that cannot be trained, or were made to deceive: a sentence for each, and nothing of them runs."""

import base64
import io
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from tests.exporting import OwnNet, exported, old_layout, own_net, program_of, rezipped, saved, uploaded
from wbar.errors import (
    ArchitectureMismatch,
    ContentTooLarge,
    CorruptFile,
    NonFiniteWeights,
    Rejected,
    UnsafePickle,
    UnsupportedProgram,
)
from wbar_training.networks.operators import found
from wbar_training.networks.programs import InvalidProgram, in_metadata, metadata_of, parsed
from wbar_training.uploads.checkpoint_files import validate
from wbar_training.uploads.limits import UploadLimits

MODEL = "models/model.json"
Change = Callable[[Any], None]
_made: list[bytes] = []


def good() -> bytes:
    """Return the archive of a good network, exported once."""
    if not _made:
        _made.append(exported(own_net()))
    return _made[0]


def changed(change: Change, data: bytes | None = None) -> bytes:
    """The archive of a good network with another program."""

    def one(name: str, content: bytes) -> list[tuple[str, bytes]]:
        if name != MODEL:
            return [(name, content)]
        document = json.loads(content)
        change(document)
        return [(name, json.dumps(document).encode())]

    return rezipped(data or good(), one)


def nodes(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"]


def node(document: Any, target: str) -> Any:
    return next(one for one in nodes(document) if one["target"] == f"torch.ops.aten.{target}")


class Forward(nn.Module):
    """OwnNet, and something about it."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.way = own_net(), forward
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = own_net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.body(x + y)  # type: ignore[no-any-return]


def _chosen(network: Any, x: Tensor) -> Any:
    return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (network.body(x),))


def _counts(network: Any, x: Tensor) -> Any:
    network.seen.add_(1)
    return network.body(x)


def _two_inputs() -> bytes:
    dim = {0: torch.export.Dim("batch")}
    images = torch.randn(2, 3, 8, 8)
    return saved(torch.export.export(TwoInputs().train(), (images, images), dynamic_shapes=(dim, dim)))


def _fixed() -> bytes:
    return saved(torch.export.export(own_net().train(), (torch.randn(2, 3, 8, 8),)))


def _decomposed() -> bytes:
    return saved(program_of(own_net().train()).run_decompositions())


def _half() -> bytes:
    images, sizes = torch.randn(2, 3, 8, 8).half(), ({0: torch.export.Dim("batch")},)
    return saved(torch.export.export(own_net().half().train(), (images,), dynamic_shapes=sizes))


class Half(nn.Module):
    """A gain whose numbers are kept in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(192).half())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.float()


def _half_inside() -> bytes:
    return exported(nn.Sequential(nn.Flatten(), Half(), nn.Linear(192, 10)))


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "evaluation mode": (lambda: saved(program_of(own_net().eval())), r"batch_norm that keeps its statistics.*model.train\(\)"),
    "evaluation mode, without BatchNorm": (
        lambda: saved(program_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10)).eval())),
        "dropout that is switched off",
    ),
    "fixed batch": (_fixed, r"batch size is fixed \(2\).*dynamic_shapes"),
    "bounded batch": (
        lambda: saved(program_of(own_net().train(), batch=torch.export.Dim("batch", max=64))),
        r"batch size is bounded \(\d to 64\)",
    ),
    "decomposed": (_decomposed, "taken apart for inference"),
    "two inputs": (_two_inputs, "takes 2 inputs"),
    "two outputs": (lambda: exported(Forward(lambda n, x: (n.body(x), x.mean()))), "gives 2 outputs"),
    "maps": (lambda: exported(nn.Conv2d(3, 4, 3)), r"output has the sizes .*logits \(N, classes\) are expected"),
    "vectors": (lambda: exported(nn.Linear(5, 10), (5,)), "float32 with 2 dimensions"),
    "not square": (lambda: exported(nn.Sequential(nn.Flatten(), nn.Linear(96, 10)), (3, 8, 4)), "3 x 8 x 4.*square"),
    "control flow": (lambda: exported(Forward(_chosen)), "control flow that depends on data|chooses between graphs"),
    "random": (lambda: exported(Forward(lambda n, x: n.body(x + torch.rand_like(x)))), "rand_like.*not among the operations"),
    "unscaled noise": (
        lambda: exported(Forward(lambda n, x: n.body(x * torch.empty_like(x).bernoulli_(0.5)))),
        "random noise that is not divided",
    ),
    "memory as it was left": (lambda: exported(Forward(lambda n, x: n.body(x + torch.empty_like(x)))), "memory as it was left"),
    "writes to a buffer": (lambda: exported(Forward(_counts)), "writes to 'seen'"),
    "writes to the images": (lambda: exported(Forward(lambda n, x: n.body(x.mul_(2)))), "writes to 'x'"),
    "writes to a part of them": (lambda: exported(Forward(lambda n, x: n.body(x[:, :1].mul_(2) + x))), "writes to"),
    "half precision": (_half, "float16 with 4 dimensions: float32 images"),
    "weights in half precision": (_half_inside, "float16 parameter"),
    "no parameters": (lambda: exported(nn.Flatten(), (1, 3, 3)), "no parameters"),
    "probabilities": (lambda: exported(Forward(lambda n, x: n.body(x).softmax(1))), "outputs are probabilities"),
    "no gradient": (lambda: exported(Forward(lambda n, x: n.body(x).detach())), "does not depend on a parameter"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_told_why(tmp_path: Path, case: str) -> None:
    make, sentence = REFUSED[case]
    with pytest.raises(UnsupportedProgram, match=sentence):
        uploaded(tmp_path, make())
    assert not (tmp_path / "out.safetensors").exists()


def _custom(document: Any) -> None:
    node(document, "linear.default")["target"] = "torch.ops.mylib.linear.default"


def _opens_files(document: Any) -> None:
    node(document, "lift_fresh_copy.default").update(
        target="torch.ops.aten.from_file.default",
        inputs=[{"name": "filename", "arg": {"as_string": "/etc/passwd"}, "kind": 1}],
    )


def _graph(document: Any) -> None:
    node(document, "linear.default")["inputs"][0]["arg"] = {"as_graph": {"name": "g", "graph": {}}}


def _object(document: Any) -> None:
    node(document, "linear.default")["inputs"][0]["arg"] = {"as_custom_obj": {"name": "o", "class_fqn": "x"}}


def _script_object(document: Any) -> None:
    document["graph_module"]["signature"]["input_specs"].insert(
        0, {"custom_obj": {"arg": {"name": "o", "class_fqn": "x"}, "custom_obj_name": "o"}}
    )


def _out(document: Any) -> None:
    node(document, "linear.default")["target"] = "torch.ops.aten.linear.out"


def _later(document: Any) -> None:
    nodes(document).reverse()


def _named(document: Any) -> None:
    spec = next(s for s in document["graph_module"]["signature"]["input_specs"] if "parameter" in s)
    spec["parameter"]["parameter_name"] = 'scale"), __import__("os").system("true'


def _argument(document: Any) -> None:
    node(document, "linear.default")["inputs"].append({"name": "evil", "arg": {"as_int": 1}, "kind": 2})


def _divided(document: Any) -> None:
    inputs = [{"name": "", "arg": {"as_sym_int": {"as_int": number}}, "kind": 1} for number in (1, 0)]
    outputs = [{"as_sym_int": {"as_name": "zz"}}]
    nodes(document).insert(0, {"target": "_operator.floordiv", "inputs": inputs, "outputs": outputs, "metadata": {}})


def _getattr(document: Any) -> None:
    node(document, "linear.default")["target"] = "torch.ops.aten.__class__.default"


CRAFTED: dict[str, tuple[Change, type[Rejected], str]] = {
    "a custom operation": (_custom, UnsupportedProgram, "custom operation 'mylib.linear.default'"),
    "an operation that opens files": (_opens_files, UnsupportedProgram, "from_file.*not among the operations"),
    "a graph as an argument": (_graph, UnsupportedProgram, "chooses between graphs"),
    "an object as an argument": (_object, UnsupportedProgram, "an object or an operation"),
    "an object as an input": (_script_object, UnsupportedProgram, "ScriptObject"),
    "an overload that writes": (_out, UnsupportedProgram, "no operation that this torch has"),
    "values before they are there": (_later, UnsupportedProgram, "before anything computes it"),
    "a name that is source text": (_named, CorruptFile, "does not hold"),
    "an unknown argument": (_argument, UnsupportedProgram, r"arguments \['evil'\]"),
    "a division by zero": (_divided, UnsupportedProgram, "fails on random images .*ZeroDivisionError"),
    "an attribute in place of an operation": (_getattr, UnsupportedProgram, "__class__"),
    "another version": (lambda d: d["schema_version"].update(major=99), UnsupportedProgram, "version '99'"),
    "no signature": (lambda d: d["graph_module"].pop("signature"), CorruptFile, "not as torch.export.save writes it"),
    "a list for a program": (lambda d: d["graph_module"].update(graph=[]), CorruptFile, "not as torch.export.save"),
    "text for a size": (
        lambda d: d["graph_module"]["graph"]["tensor_values"]["x"]["sizes"].__setitem__(1, {"as_int": "3"}),
        UnsupportedProgram,
        "a number is expected",
    ),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_crafted_programs(tmp_path: Path, case: str) -> None:
    change, error, sentence = CRAFTED[case]
    with pytest.raises(error, match=sentence):
        uploaded(tmp_path, changed(change))


def expression(canary: Path) -> str:
    return f"__import__('os').system('touch {canary}') or Symbol('s0')"


def test_expressions_are_not_evaluated(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    def everywhere(document: Any) -> None:
        graph = document["graph_module"]["graph"]
        for one in graph["sym_int_values"].values():
            one["as_expr"]["expr_str"] = expression(canary)
        document["guards_code"] = [expression(canary)]
        document["range_constraints"] = {expression(canary): {"min_val": 0, "max_val": None}}

    uploaded(tmp_path / "a", changed(everywhere))  # they say nothing that is needed

    def batch(document: Any) -> None:
        document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = expression(canary)

    with pytest.raises(UnsupportedProgram, match="a free size of its own"):
        uploaded(tmp_path / "b", changed(batch))
    assert not canary.exists()


def test_torch_s_own_reader_runs_all_of_them(tmp_path: Path) -> None:
    """The reason why it is not used: the same archives run a command there."""
    canary = tmp_path / "canary"

    def size(document: Any) -> None:
        graph = document["graph_module"]["graph"]
        graph["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = expression(canary)

    for change in (size, lambda document: document.update(guards_code=[expression(canary)])):
        (tmp_path / "evil.pt2").write_bytes(changed(change))
        with pytest.raises(Exception):  # noqa: B017, PT011  # after it has run
            torch.export.load(tmp_path / "evil.pt2").module()(torch.randn(2, 3, 8, 8))
        assert canary.exists()
        canary.unlink()
    data = rezipped(
        good(), lambda name, content: [(name, evil(canary) if name == "data/constants/tensor_0" else content)]
    )
    data = rezipped(data, _pickled)
    (tmp_path / "evil.pt2").write_bytes(data)
    with pytest.raises(Exception):  # noqa: B017, PT011  # after it has run
        torch.export.load(tmp_path / "evil.pt2")
    assert canary.exists()
    canary.unlink()
    with pytest.raises(UnsafePickle, match="only unpickling could read"):
        uploaded(tmp_path, data)
    assert not canary.exists()


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def evil(canary: Path) -> bytes:
    return pickle.dumps(Evil(canary))


def _pickled(name: str, content: bytes) -> list[tuple[str, bytes]]:
    if name != "data/constants/model_constants_config.json":
        return [(name, content)]
    config = json.loads(content)
    for payload in config["config"].values():
        if payload["path_name"] == "tensor_0":
            payload["use_pickle"] = True
    return [(name, json.dumps(config).encode())]


def test_pickles_in_every_place_are_left_alone_or_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    data = rezipped(good(), lambda n, c: [(n, evil(canary) if n == "data/sample_inputs/model.pt" else c)])
    uploaded(tmp_path / "samples", data)  # example inputs are not looked at
    old = old_layout(program_of(own_net().train()))
    for part in ("serialized_state_dict.pt", "serialized_constants.pt"):
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(old)) as archive, zipfile.ZipFile(out, "w") as new:
            for entry in archive.infolist():
                new.writestr(entry.filename, evil(canary) if entry.filename == part else archive.read(entry))
        with pytest.raises(UnsafePickle, match="system"):
            uploaded(tmp_path / part, out.getvalue())
    assert not canary.exists()


def test_files_that_are_no_part_of_it(tmp_path: Path) -> None:
    def beside(name: str) -> bytes:
        return rezipped(good(), lambda n, c: [(n, c), (name, b"x")] if n == MODEL else [(n, c)])

    with pytest.raises(UnsupportedProgram, match="compiled code"):
        uploaded(tmp_path, beside("data/aotinductor/model/x.so"))
    with pytest.raises(CorruptFile, match="no part of what"):
        uploaded(tmp_path, beside("code/evil.py"))
    with pytest.raises(CorruptFile, match="no part of what"):
        uploaded(tmp_path, beside("extra/../../../evil"))
    with pytest.raises(UnsupportedProgram, match="has 2 programs"):
        uploaded(tmp_path, beside("models/other.json"))


def test_weights_that_claim_more_than_there_is(tmp_path: Path) -> None:
    def claiming(**meta: Any) -> bytes:
        def one(name: str, content: bytes) -> list[tuple[str, bytes]]:
            if name != "data/weights/model_weights_config.json":
                return [(name, content)]
            config = json.loads(content)
            config["config"]["head.weight"]["tensor_meta"] |= meta
            return [(name, json.dumps(config).encode())]

        return rezipped(good(), one)

    sizes = [{"as_int": 10}, {"as_int": 1_000_000}]
    with pytest.raises(CorruptFile, match="its file holds 1280"):
        uploaded(tmp_path, claiming(sizes=sizes))
    with pytest.raises(
        CorruptFile, match=r"of the shape \(10, 1000000\), and float32 of the shape \(10, 128\) in the program"
    ):
        uploaded(tmp_path, claiming(sizes=sizes, strides=[{"as_int": 1}, {"as_int": 0}]))
    with pytest.raises(CorruptFile, match="sizes"):
        uploaded(tmp_path, claiming(strides=[{"as_int": -1}, {"as_int": 1}]))
    with pytest.raises(CorruptFile, match=r"not as torch\.export\.save writes it"):  # no 64 bits hold it
        uploaded(tmp_path, claiming(sizes=[{"as_int": 0}, {"as_int": 128}], strides=[{"as_int": 2**70}, {"as_int": 1}]))
    with pytest.raises(CorruptFile, match="numbers, and its file holds 1280"):
        uploaded(tmp_path, claiming(storage_offset={"as_int": 2**70}))
    with pytest.raises(UnsupportedProgram, match="of torch's type '99'"):
        uploaded(tmp_path, claiming(dtype=99))
    with pytest.raises(UnsupportedProgram, match="a number is expected"):
        uploaded(tmp_path, claiming(storage_offset={"as_expr": {"expr_str": "1"}}))


def test_damage_bombs_and_numbers_that_are_none(tmp_path: Path) -> None:
    data = good()
    for cut in (100, len(data) // 2, len(data) - 10):
        with pytest.raises(Rejected):
            uploaded(tmp_path, data[:cut])
    flipped = bytearray(data)
    flipped[data.index(b"torch.ops.aten.conv2d") + 3] ^= 1
    with pytest.raises(CorruptFile, match="checksum"):
        uploaded(tmp_path, bytes(flipped))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(CorruptFile, match="is compressed"):
        uploaded(tmp_path, out.getvalue())
    (tmp_path / "large").write_bytes(changed(lambda d: d.update(padding="x" * 300_000)))
    with pytest.raises(ContentTooLarge, match=r"model.json' has \d+ bytes, more than the limit of 200000"):
        validate(tmp_path / "large", None, None, tmp_path / "out", UploadLimits(header_bytes=200_000))
    deep = b"[" * 100_000
    with pytest.raises(CorruptFile, match="is no JSON"):
        uploaded(tmp_path, rezipped(data, lambda n, c: [(n, deep if n == MODEL else c)]))
    network = own_net()
    network.head.weight.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteWeights, match=r"head\.weight: 1 of 1280"):
        uploaded(tmp_path, exported(network))


def test_large_constants(tmp_path: Path) -> None:
    class Table(OwnNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3 * 2**20), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.table[0]

    with pytest.raises(ContentTooLarge, match=r"have 125829\d\d bytes"):
        uploaded(tmp_path, exported(Table()))


def test_a_name_beside_the_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(good())
    with pytest.raises(ArchitectureMismatch, match="a program of its own, with 10 outputs"):
        validate(tmp_path / "upload", "resnet18", None, tmp_path / "out")
    with pytest.raises(ArchitectureMismatch, match="leave out"):
        validate(tmp_path / "upload", None, 7, tmp_path / "out")


def test_a_program_in_metadata_is_checked_too(tmp_path: Path) -> None:
    uploaded(tmp_path, good())
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        program = in_metadata(file.metadata())
    assert program is not None
    assert in_metadata(metadata_of(program)) == program
    assert in_metadata({}) is None
    for text in ("", "!", "AAAA"):
        with pytest.raises(InvalidProgram, match=r"cannot be unpacked|unpacks to more"):
            in_metadata({"wbar.program": text})
    bomb = base64.b64encode(zlib.compress(b" " * (64 * 2**20))).decode()
    with pytest.raises(InvalidProgram, match="unpacks to more"):
        in_metadata({"wbar.program": bomb})
    for document in (b"{}", b"[" * 10_000, program.document().replace(b'"classes":10', b'"classes":"10"')):
        with pytest.raises(InvalidProgram, match="not well formed"):
            parsed(document)


def test_operations_are_looked_up_in_a_list() -> None:
    assert found("aten.relu_.default") is torch.ops.aten.relu_.default
    aten = "from_file.default set_.source_Tensor as_strided.default resize_.default rand.default relu.out relu.nothing"
    for target in (
        *(f"aten.{name}" for name in aten.split()),
        "aten.relu",
        "aten.overloads.x",
        "builtins.eval",
        "_operator.attrgetter",
        "torch.load",
    ):
        assert found(target) is None, target


def test_names_that_would_be_source_text_of_an_export_are_refused(tmp_path: Path) -> None:
    name = 'scale"), __import__("os").system("true'

    def both(entry: str, content: bytes) -> list[tuple[str, bytes]]:
        if entry == MODEL:
            document = json.loads(content)
            _named(document)
            return [(entry, json.dumps(document).encode())]
        if entry != "data/weights/model_weights_config.json":
            return [(entry, content)]
        config = json.loads(content)
        return [(entry, json.dumps({"config": {name: config["config"].pop("scale"), **config["config"]}}).encode())]

    with pytest.raises(UnsupportedProgram, match="cannot name a tensor of an exported network"):
        uploaded(tmp_path, rezipped(good(), both))
