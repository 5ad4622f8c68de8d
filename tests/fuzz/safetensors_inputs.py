"""safetensors files whose header lies: each is the valid file with one lie, so that nothing else can refuse it."""

import json
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from tests.fuzz.inputs import BASES, Input, Source

Header = dict[str, Any]


@cache
def _parts() -> tuple[str, bytes]:
    data = BASES["safetensors"][2]()
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length].decode(), data[8 + length :]


def _file(header: Header | bytes, data: bytes, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def _tensor(source: Source, header: Header) -> Header:
    found: Header = header[source.draws.choice(sorted(name for name in header if name != "__metadata__"))]
    return found


def _entry_lie(change: Callable[[Source, Header], None]) -> Callable[[Source], bytes]:
    def make(source: Source) -> bytes:
        text, data = _parts()
        header = json.loads(text)
        change(source, _tensor(source, header))
        return _file(header, data)

    return make


def _shift(source: Source, entry: Header) -> None:
    by = source.draws.choice((-8, -4, -1, 1, 4, 8, 1000, 2**40))
    entry["data_offsets"] = [entry["data_offsets"][0] + by, entry["data_offsets"][1] + by]


def _offsets(source: Source, entry: Header) -> None:
    begin, end = entry["data_offsets"]
    entry["data_offsets"] = source.draws.choice(
        ([end, begin], [-begin - 4, end], [begin, -end], [float(begin), float(end)], [str(begin), str(end)],
        [begin], [],
         [begin, end, end], None, [begin, 2**64 - 1], [2**63, 2**63 + end - begin], {}, [True, end], [begin, end + 1])
    )  # fmt: skip
    if entry["data_offsets"] == [0, end]:
        entry["data_offsets"] = [1, end]


def _shape(source: Source, entry: Header) -> None:
    shape = entry["shape"]
    entry["shape"] = source.draws.choice(
        ([2**62, 4, *shape], [2**32, 2**32], [-1, -1, *shape], [*shape, 2], [0, *shape], [1] * 65 + shape, None, "4", 4,
         [*map(float, shape), 1.0], [[*shape]], [2**63] * 60, [str(side) for side in shape] or ["1"], [10**400, 0],
         [*shape, 2**63])
    )  # fmt: skip


def _dtype(source: Source, entry: Header) -> None:
    if entry["dtype"] == "I64":  # a counter, which may be of any type
        entry["dtype"] = source.draws.choice(("F31", None, "U64"))
        return
    entry["dtype"] = source.draws.choice(
        ("F31", "", None, 32, [], "f32" * 10**6, "F32\0", "F8_E4M3", "C64", "U64", "\ud83d\ude00", "I32", "F64", "F16")
    )


def _more_keys(source: Source, entry: Header) -> None:
    entry[source.draws.choice(("strides", "offset", "device", "requires_grad", "x" * 10**6))] = source.draws.choice(
        ([1], None, 0)
    )


def _text_lie(change: Callable[[Source, str], str | bytes]) -> Callable[[Source], bytes]:
    def make(source: Source) -> bytes:
        text, data = _parts()
        changed = change(source, text)
        return _file(changed if isinstance(changed, bytes) else changed.encode("utf-8", "surrogatepass"), data)

    return make


def _twice(source: Source, text: str) -> str:
    header = json.loads(text)
    name = source.draws.choice(sorted(header))
    return f'{{"{name}":{json.dumps(header[name])},{text[1:]}'


def _literal(source: Source, text: str) -> str:
    value = source.draws.choice(
        ("NaN", "Infinity", "-Infinity", "1" * 5000, "1e999", "0x10", "01", "nul", '"\\ud800"', "'a'", "{}")
    )
    return source.draws.choice(
        (f'{{"__metadata__":{{"a":{value}}},{text[1:]}', text.replace('"shape":[', f'"shape":[{value},', 1))
    )


def _deep(source: Source, text: str) -> str:
    depth = source.draws.choice((1000, 100_000, 1_000_000))
    opening, closing = source.draws.choice((("[", "]"), ('{"a":', "}")))
    return f'{{"deep":{opening * depth}1{closing * depth},{text[1:]}'


def _encoding(source: Source, text: str) -> bytes:
    return source.draws.choice(
        (text.encode("utf-16"), text.encode("utf-32"), b"\xef\xbb\xbf" + text.encode(), text.replace("conv",
        "\udcff", 1).encode("utf-8", "surrogateescape"), text.replace("conv", "\ud800", 1).encode("utf-8",
        "surrogatepass"), b" " + text.encode(), b"\n" + text.encode(), text.encode() + b"\0" * 8,
        text.encode() + b"x")
    )  # fmt: skip


def _not_an_object(source: Source, text: str) -> str:
    return source.draws.choice((f"[{text}]", "null", "1", '"x"', "", "{", "}", "{}" + text, text + text, "[]"))


def _metadata(source: Source, text: str) -> str:
    value = source.draws.choice(("1", "[]", "null", '{"a":1}', '{"a":{"b":"c"}}', '{"a":null}', '{"dtype":"F32"}x'))
    return f'{{"__metadata__":{value},{text[1:]}'


def _length(source: Source) -> bytes:
    text, data = _parts()
    length = source.draws.choice(
        (0, 1, len(text) - 1, len(text) + 1, 100 * 2**20, 2**31, 2**63, 2**64 - 1, len(text) + len(data) + 1)
    )
    return _file(text.encode(), data, length)


def _large(source: Source) -> bytes:
    text, data = _parts()
    if source.draws.random() < 0.5:
        return _file(text.encode() + b" " * (33 * 2**20), data)
    return _file({f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}, b"")


def _cut_or_longer(source: Source) -> bytes:
    text, data = _parts()
    by = source.draws.randrange(1, 5000)
    return _file(text.encode(), source.draws.choice((data[:-by], data + bytes(by), b"")))


def _bomb_of_parts(source: Source) -> bytes:
    return _file(b'{"a":[' + b"[]," * 1_000_000 + b"[]]}", b"")


def _unfit(source: Source, text: str) -> str:
    """Well-formed files that are no resnet20."""
    header = json.loads(text)
    name = source.draws.choice(sorted(name for name in header if name != "__metadata__"))
    entry = header.pop(name)
    header[
        source.draws.choice((f"{name}x", f"module.{name}", "x" * 3_000_000, "\x1b[2J", f"../{name}", "", "aux1.\x07"))
    ] = entry
    return json.dumps(header)


LIES: dict[str, Callable[[Source], bytes]] = {
    "overlap or hole": _entry_lie(_shift),
    "offsets": _entry_lie(_offsets),
    "shape": _entry_lie(_shape),
    "dtype": _entry_lie(_dtype),
    "more keys": _entry_lie(_more_keys),
    "name twice": _text_lie(_twice),
    "no JSON": _text_lie(_literal),
    "deep JSON": _text_lie(_deep),
    "encoding": _text_lie(_encoding),
    "no object": _text_lie(_not_an_object),
    "metadata": _text_lie(_metadata),
    "names": _text_lie(_unfit),
    "header length": _length,
    "data length": _cut_or_longer,
}
RARE: dict[str, Callable[[Source], bytes]] = {"very large": _large, "many parts": _bomb_of_parts}  # seconds each


def safetensors_input(source: Source) -> Input:
    lies = RARE if source.draws.random() < 0.01 else LIES
    name = source.draws.choice(sorted(lies))
    return Input(f"safetensors: {name}", "checkpoint", lies[name](source))
