"""Programs that an attacker writes node by node: what they would change, fill or depend on, and the sentence that each gets.

No exporter writes such graphs; they come in as the metadata of a weights file, which anybody can write.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.exporting import exported, uploaded
from wbar.errors import ArchitectureMismatch, CorruptFile, UnsupportedProgram
from wbar_averaging import write_safetensors
from wbar_training.networks.operators import LARGEST, found
from wbar_training.networks.programs import METADATA, Named, Node, Of, Program, State, Value, in_metadata, metadata_of

_made: list[tuple[Program, dict[str, Tensor]]] = []
X, FLAT = Of("input"), Of("flatten")


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Program, dict[str, Tensor]]:
    """The program of a linear map, and its tensors."""
    if not _made:
        torch.manual_seed(0)
        uploaded(tmp_path / "plain", exported(nn.Sequential(nn.Flatten(), nn.Linear(192, 10))))
        with safe_open(tmp_path / "plain" / "out.safetensors", framework="pt") as file:
            program = in_metadata(file.metadata())
        assert program is not None
        _made.append((program, load_file(tmp_path / "plain" / "out.safetensors")))
    return _made[0]


def sent(folder: Path, program: Program, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Upload weights with a program. Raises Rejected."""
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "crafted", tensors, metadata_of(program) | metadata)
    uploaded(folder, (folder / "crafted").read_bytes())


def node(target: str, output: str | tuple[str, ...], /, **arguments: Value) -> Node:
    return Node(target, arguments, (output,) if isinstance(output, str) else output)


def before(program: Program, *nodes: Node) -> Program:
    """Put operations before the others; the last one's result takes the place of the images."""
    first, *rest = program.nodes
    images = Of(nodes[-1].outputs[-1])
    return replace(program, nodes=(*nodes, replace(first, arguments={**first.arguments, "self": images}), *rest))


def noise(dtype: str = "float32") -> tuple[Node, ...]:
    """Noise of stochastic depth on the images, as torchvision's graphs have it."""
    return (
        node("aten.sym_size.int", "count", self=X, dim=0),
        node("aten.empty.memory_format", "memory", size=(Of("count"), 1, 1, 1), dtype=Named("dtype", dtype)),
        node("aten.bernoulli_.float", "noise", self=Of("memory"), p=0.5),
        node("aten.div.Tensor", "scaled", self=Of("noise"), other=0.5),
        node("aten.mul.Tensor", "left", self=X, other=Of("scaled")),
    )


def test_what_is_no_attack_is_taken(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    program, tensors = plain
    sent(tmp_path, program, tensors)
    sent(tmp_path, before(program, *noise()), tensors)
    own = (
        node("aten.clone.default", "memory", self=X),
        node("aten.bernoulli_.float", "noise", self=Of("memory"), p=0.5),
        node("aten.div_.Tensor", "scaled", self=Of("noise"), other=0.5),
        node("aten.mul.Tensor", "left", self=X, other=Of("scaled")),
    )
    sent(tmp_path, before(program, *own), tensors)


# Memory that a job keeps.

VIEWS: dict[str, tuple[Node, ...]] = {
    "a part of a list": (
        node("aten.split.Tensor", ("one", "two"), self=X, split_size=4, dim=2),
        node("aten.mul_.Tensor", "y", self=Of("two"), other=2.0),
    ),
    "a member of a list": (
        node("aten.unbind.int", ("first", "second", "third"), self=X, dim=1),
        node("aten.stack.default", "stacked", tensors=(Of("first"), Of("second"), Of("third")), dim=1),
        node("aten.zero_.default", "y", self=Of("third")),
    ),
    "one that is taken out of a list": (
        node("aten.split.Tensor", "parts", self=X, split_size=4, dim=2),
        Node("_operator.getitem", {"0": Of("parts"), "1": 0}, ("part",)),
        node("aten.zero_.default", "y", self=Of("part")),
    ),
    "no dropout at all": (
        node("aten.dropout.default", "same", input=X, p=0.0, train=True),
        node("aten.mul_.Tensor", "y", self=Of("same"), other=2.0),
    ),
    "one of a sum of products": (
        node("aten.einsum.default", "turned", equation="nchw->nhwc", tensors=(X,)),
        node("aten.zero_.default", "y", self=Of("turned")),
    ),
    "nothing repeated": (
        node("aten.broadcast_to.default", "same", self=X, size=(-1, 3, 8, 8)),
        node("aten.zero_.default", "y", self=Of("same")),
    ),
    "a window": (
        node("aten.pad.default", "smaller", self=X, pad=(0, -1), mode="constant"),
        node("aten.zero_.default", "y", self=Of("smaller")),
    ),
    "a view of a view": (
        node("aten.unflatten.int", "parts", self=X, dim=3, sizes=(2, 4)),
        node("aten.movedim.int", "moved", self=Of("parts"), source=3, destination=1),
        node("aten.zero_.default", "y", self=Of("moved")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", VIEWS)
def test_nothing_is_written_through_another_name_of_the_images(
    case: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    whole = before(program, *VIEWS[case], node("aten.clone.default", "x", self=X))
    with pytest.raises(
        UnsupportedProgram, match=r"writes to '\w+', which is a weight, a constant or the input, or a part"
    ):
        sent(tmp_path, whole, tensors)


WRITING = ["topk.values", "max.dim_max", "min.dim_min", "median.dim_values", "add.out", "cumprod.out"]


@pytest.mark.parametrize("name", WRITING)
def test_operations_that_write_to_an_argument_are_not_there(name: str) -> None:
    assert name.split(".")[1] in getattr(torch.ops.aten, name.split(".")[0]).overloads()
    assert found(f"aten.{name}") is None


def test_operations_on_numbers_alone_are_not_there(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    """A remainder by zero of these ends the process, whatever Python would catch."""
    program, tensors = plain
    for name in ("remainder.int", "eq.str_list", "index.list_str", "copy.Dict_str"):
        assert name.split(".")[1] in getattr(torch.ops.aten, name.split(".")[0]).overloads()
        assert found(f"aten.{name}") is None, name
    assert found("aten.sym_size.int") is torch.ops.aten.sym_size.int
    nodes = (
        node("aten.remainder.int", "rest", a=1, b=0),
        node("aten.mul.Tensor", "y", self=X, other=Of("rest")),
    )
    with pytest.raises(UnsupportedProgram, match=r"'aten\.remainder\.int' is no operation"):
        sent(tmp_path, before(program, *nodes), tensors)


def test_a_weight_is_not_what_a_result_is_written_to(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    program, tensors = plain
    largest = node("aten.topk.values", ("values", "indices"), self=X, k=1, values=Of("p_1_weight"), indices=X)
    with pytest.raises(UnsupportedProgram, match=r"'aten\.topk\.values' is no operation"):
        sent(tmp_path, before(program, largest, node("aten.clone.default", "x", self=X)), tensors)


def test_an_argument_beside_the_one_that_is_looked_at(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    """Dropout's tensor is `input`: one that is called `self`, too, was what the rule looked at, and not what was written."""
    program, tensors = plain
    nodes = (
        node("aten.clone.default", "copy", self=X),
        node("aten.dropout_.default", "y", self=Of("copy"), input=X, p=0.5, train=True),
    )
    with pytest.raises(
        UnsupportedProgram, match=r"dropout_.default of 'y' has arguments \['input'\] that this torch does not"
    ):
        sent(tmp_path, before(program, *nodes), tensors)


# Second names.


def tied(program: Program, name: str, *others: str) -> Program:
    return replace(program, state=program.state | {name: replace(program.state[name], tied=others)})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ('x"), __import__("os").system("true', "cannot name a tensor"),
        ("1.bias", "two tensors of the program are named '1.bias'"),
        ("1.weight", "two tensors of the program are named '1.weight'"),
        ("wbar_dropouts.0", "a name that the network's own layers have"),
        ("", "cannot name a tensor"),
    ],
)
def test_second_names_are_checked_like_the_first(
    other: str, words: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    shape = (10, 192)  # of both, or their shapes would differ first
    square = replace(program, state={n: replace(one, shape=shape) for n, one in program.state.items()})
    with pytest.raises(UnsupportedProgram, match=words):
        sent(tmp_path, tied(square, "1.weight", other), {name: torch.zeros(shape) for name in (other, *tensors)})


def test_one_parameter_has_the_same_numbers_under_each_of_its_names(
    tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    second = tied(program, "1.weight", "2.weight")
    sent(tmp_path, second, {**tensors, "2.weight": tensors["1.weight"].clone()})
    with pytest.raises(
        UnsupportedProgram, match=r"'1\.weight' and '2\.weight' are one parameter in the program, and differ"
    ):
        sent(tmp_path, second, {**tensors, "2.weight": tensors["1.weight"] + 1})
    with pytest.raises(ArchitectureMismatch, match=r"'2\.weight' is missing"):
        sent(tmp_path, second, tensors)


# Numbers.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_size": -3, "any_size": True}, "8 x 8, and of -3 pixels a side at least"),
        ({"min_size": 9, "any_size": True}, "of 9 pixels a side at least"),
        ({"height": 10**6, "width": 10**6}, "1000000 x 1000000"),
        ({"height": -8, "width": -8, "min_size": -8}, "-8 x -8"),
        ({"width": 9}, "8 x 9"),
        ({"channels": 0}, "0 channels"),
        ({"channels": 10**15}, "1000000000000000 channels: 1 to 1024"),
        ({"classes": 0}, "0 classes"),
        ({"classes": 10**12}, "1000000000000 classes: 1 to 1000000"),
    ],
)
def test_sizes_that_no_network_for_images_has(
    changes: dict[str, int], words: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    with pytest.raises(UnsupportedProgram, match=words):
        sent(tmp_path, replace(program, **changes), tensors)


@pytest.mark.parametrize("text", ["0", "-1", "x", "٣", "1000001", "9" * 5000, "1e3", ""])
def test_a_number_of_classes_beside_the_program(
    text: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    with pytest.raises(CorruptFile, match="1 to 1000000 can be taken"):
        sent(tmp_path, program, tensors, **{"wbar.num_classes": text})


def grown(times: int) -> tuple[Node, ...]:
    """A size that is squared again and again, and images that are made with it."""
    nodes = [node("aten.sym_size.int", "n0", self=X, dim=2)]
    for place in range(times):
        one = Of(f"n{place}")
        nodes.append(Node("_operator.mul", {"0": one, "1": one}, (f"n{place + 1}",)))
    return (*nodes, node("aten.add.Tensor", "y", self=X, other=Of(f"n{times}")))


def test_sizes_do_not_grow_without_bound(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    program, tensors = plain
    assert LARGEST < 8**2**5
    sent(tmp_path, before(program, *grown(2)), tensors)
    for times in (5, 40):  # 40: a number of 3 · 2⁴⁰ bits
        with pytest.raises(UnsupportedProgram, match=r"a size of \d+ bits is no size"):
            sent(tmp_path, before(program, *grown(times)), tensors)
    text = (
        Node("_operator.mul", {"0": "x", "1": 10**9}, ("text",)),
        node("aten.pad.default", "y", self=X, pad=(1, 1), mode=Of("text")),
    )
    with pytest.raises(UnsupportedProgram, match="arithmetic on sizes is given a str"):
        sent(tmp_path, before(program, *text), tensors)
    values = (Node("_operator.mul", {"0": X, "1": X}, ("y",)),)
    with pytest.raises(UnsupportedProgram, match="arithmetic on sizes is given a Tensor"):
        sent(tmp_path, before(program, *values), tensors)


LARGE: dict[str, tuple[Node, ...]] = {
    "a filled tensor": (
        node("aten.full.default", "large", size=(2**45,), fill_value=1.0),
        node("aten.sum.default", "one", self=Of("large")),
        node("aten.mul.Tensor", "y", self=X, other=Of("one")),
    ),
    "padding": (
        node("aten.constant_pad_nd.default", "large", self=X, pad=(2**40, 0)),
        node("aten.sum.dim_IntList", "y", self=Of("large"), dim=(3,)),
    ),
    "repetition": (node("aten.repeat.default", "y", self=X, repeats=(1, 1, 2**22, 2**22)),),
    "classes": (
        node("aten.argmax.default", "which", self=X, dim=3),
        node("aten.one_hot.default", "y", self=Of("which"), num_classes=2**40),
    ),
    "a size beyond 64 bits": (node("aten.repeat.default", "y", self=X, repeats=(1, 1, 1, 2**70)),),
}


@pytest.mark.parametrize("case", LARGE)
def test_sizes_that_would_take_terabytes(case: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    """They fail before anything is filled: the worker says of a MemoryError that it is too large."""
    program, tensors = plain
    with pytest.raises((UnsupportedProgram, MemoryError)):
        sent(tmp_path, before(program, *LARGE[case]), tensors)


# Kinds of arguments.


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            (node("aten.cumsum.default", "y", self=X, dim=3, dtype=-1),),
            "dtype of aten.cumsum.default is '-1', and dtype",
        ),
        ((node("aten.cumsum.default", "y", self=X, dim=3, dtype=9),), "dtype of aten.cumsum.default is '9'"),
        ((node("aten.zeros_like.default", "y", self=X, layout=2),), "layout of aten.zeros_like.default is '2'"),
        ((node("aten.clone.default", "y", self=X, memory_format=77),), "memory_format of aten.clone.default is '77'"),
        (
            (node("aten.to.device", "y", self=X, device="meta", dtype=Named("dtype", "float32")),),
            "device of aten.to.device",
        ),
        (
            (node("aten.add.Tensor", "y", self=X, other=X, alpha=Named("dtype", "float32")),),
            "alpha of aten.add.Tensor is .*, and no name",
        ),
        ((node("aten.zeros_like.default", "y", self=X, dtype=Named("layout", "strided")),), "and dtype is expected"),
    ],
)
def test_numbers_in_the_place_of_names(
    nodes: tuple[Node, ...], words: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    """torch takes any number for a dtype: −1 computed for ever, others made tensors that no other operation takes."""
    program, tensors = plain
    with pytest.raises(UnsupportedProgram, match=words):
        sent(tmp_path, before(program, *nodes), tensors)


def test_an_operation_without_a_result(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    program, tensors = plain
    for target in ("aten.batch_norm.default", "aten.dropout.default", "aten.bernoulli_.float", "aten.relu.default"):
        silent = Node(target, {"self": X, "training": True, "train": True}, ())
        with pytest.raises(UnsupportedProgram, match="has no result"):
            sent(tmp_path, before(program, silent, node("aten.clone.default", "y", self=X)), tensors)


# Images that depend on each other.

NEIGHBOURS: dict[str, tuple[Node, ...]] = {
    "the mean of the batch": (
        node("aten.mean.dim", "mean", self=X, dim=(0,), keepdim=True),
        node("aten.sub.Tensor", "y", self=X, other=Of("mean")),
    ),
    "the image before": (node("aten.cumsum.default", "y", self=X, dim=0),),
    "the image after": (
        node("aten.flip.default", "turned", self=X, dims=(0,)),
        node("aten.cumsum.default", "sums", self=Of("turned"), dim=0),
        node("aten.flip.default", "y", self=Of("sums"), dims=(0,)),
    ),
    "another order": (node("aten.flip.default", "y", self=X, dims=(0,)),),
    "the size of the batch": (
        node("aten.sym_size.int", "count", self=X, dim=0),
        node("aten.mul.Tensor", "y", self=X, other=Of("count")),
    ),
}


@pytest.mark.parametrize("case", NEIGHBOURS)
def test_an_image_does_not_depend_on_its_neighbours(
    case: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    with pytest.raises(UnsupportedProgram, match="depend on the images beside it"):
        sent(tmp_path, before(program, *NEIGHBOURS[case]), tensors)


def test_batch_norm_without_running_statistics(tmp_path: Path) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten(), nn.Linear(144, 10)
    )
    with pytest.raises(UnsupportedProgram, match="'1' is a BatchNorm without running statistics"):
        uploaded(tmp_path, exported(network))


# Noise.

BADLY: dict[str, tuple[tuple[Node, ...], str]] = {
    "of integers": (noise("int64"), "noise of torch.int64, which cannot hold its rate 0.5"),
    "of booleans": (noise("bool"), "noise of torch.bool"),
    "seen through a view": (
        (
            node("aten.zeros_like.default", "memory", self=X),
            node("aten.view.default", "other", self=Of("memory"), size=(-1, 3, 8, 8)),
            node("aten.bernoulli_.float", "noise", self=Of("memory"), p=0.5),
            node("aten.div.Tensor", "scaled", self=Of("noise"), other=0.5),
            node("aten.mul.Tensor", "y", self=Of("scaled"), other=Of("other")),
        ),
        "'noise' is random noise that is written into 'memory', which the network uses elsewhere",
    ),
    "in a part of something": (
        (
            node("aten.zeros_like.default", "memory", self=X),
            node("aten.select.int", "part", self=Of("memory"), dim=1, index=0),
            node("aten.bernoulli_.float", "noise", self=Of("part"), p=0.5),
            node("aten.div.Tensor", "scaled", self=Of("noise"), other=0.5),
            node("aten.mul.Tensor", "y", self=X, other=Of("memory")),
        ),
        "written into 'part'",
    ),
    "under the name before": (
        (
            node("aten.clone.default", "memory", self=X),
            node("aten.bernoulli_.float", "noise", self=Of("memory"), p=0.5),
            node("aten.div.Tensor", "scaled", self=Of("noise"), other=0.5),
            node("aten.mul.Tensor", "half", self=X, other=Of("scaled")),
            node("aten.mul.Tensor", "y", self=Of("half"), other=Of("memory")),
        ),
        "written into 'memory'",
    ),
    "in a member of a list": (
        (
            node("aten.zeros_like.default", "memory", self=X),
            node("aten.unbind.int", ("one", "two", "three"), self=Of("memory"), dim=1),
            node("aten.bernoulli_.float", "noise", self=Of("two"), p=0.5),
            node("aten.div.Tensor", "scaled", self=Of("noise"), other=0.5),
            node("aten.mul.Tensor", "y", self=X, other=Of("memory")),
        ),
        "written into 'two'",
    ),
    "at a rate of zero": (
        (*noise()[:2], node("aten.bernoulli_.float", "noise", self=Of("memory"), p=0.0), *noise()[3:]),
        "not divided by its rate",
    ),
}


@pytest.mark.parametrize("case", BADLY)
def test_noise_that_could_not_be_switched_off(
    case: str, tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]
) -> None:
    program, tensors = plain
    nodes, words = BADLY[case]
    with pytest.raises(UnsupportedProgram, match=words):
        sent(tmp_path, before(program, *nodes), tensors)


# The reader.


def test_a_state_that_claims_more_than_the_file_holds(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    program, tensors = plain
    large = program.state | {"more": State("more", (2**40, 2**20), "float32", True)}
    with pytest.raises(ArchitectureMismatch, match="'more' is missing"):
        sent(tmp_path, replace(program, state=large), tensors)


def test_metadata_of_two_programs_is_one_of_them(tmp_path: Path, plain: tuple[Program, dict[str, Tensor]]) -> None:
    """A header names a key once: the second of two would be the one that others read."""
    program, tensors = plain
    save_file(tensors, tmp_path / "twice", metadata_of(program))
    data = (tmp_path / "twice").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    packed = metadata_of(program)[METADATA].encode()
    header = header.replace(b'"__metadata__":{', b'"__metadata__":{"' + METADATA.encode() + b'":"' + packed + b'",', 1)
    header += b" " * (-len(header) % 8)
    with pytest.raises(CorruptFile, match="occurs twice"):
        uploaded(tmp_path, len(header).to_bytes(8, "little") + header + data[8 + length :])
