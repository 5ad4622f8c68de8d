"""Valid files with flipped bits, lost ends, and pieces of themselves or of others in the wrong place."""

from tests.fuzz.inputs import BASES, Input, Source

EDGE = 4096  # bytes at either end, where headers and directories lie: half of the mutations go there


def _place(source: Source, data: bytes) -> int:
    if source.draws.random() < 0.5:
        at = source.draws.randrange(min(EDGE, len(data)))
        return at if source.draws.random() < 0.5 else len(data) - 1 - at
    return source.draws.randrange(len(data))


def flipped(source: Source, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(source.draws.choice((1, 1, 2, 5, 20))):
        changed[_place(source, data)] ^= 1 << source.draws.randrange(8)
    return bytes(changed)


def overwritten(source: Source, data: bytes) -> bytes:
    changed, at = bytearray(data), _place(source, data)
    size = source.draws.choice((1, 2, 4, 8, 64))
    value = source.draws.choice((b"\0", b"\xff", b"\x7f", b"\x80", source.draws.randbytes(1)))
    changed[at : at + size] = (value * size)[: len(data) - at]
    return bytes(changed)


def truncated(source: Source, data: bytes) -> bytes:
    return data[: source.draws.choice((_place(source, data), len(data) - source.draws.randrange(1, 64)))]


def spliced(source: Source, data: bytes) -> bytes:
    """Copy, move or drop a piece."""
    begin, at = _place(source, data), _place(source, data)
    piece = data[begin : begin + source.draws.choice((1, 8, 100, 512, 5000))]
    return source.draws.choice(
        (
            data[:at] + piece + data[at:],
            data[:at] + piece + data[at + len(piece) :],
            data[:begin] + data[begin + len(piece) :],
            data + piece,
            piece + data,
        )
    )


def crossed(source: Source, data: bytes) -> bytes:
    """Put the beginning of one file before the end of another."""
    other = BASES[source.draws.choice(sorted(BASES))][2]()
    return data[: _place(source, data)] + other[_place(source, other) :]


CHANGES = {"flip": flipped, "overwrite": overwritten, "truncate": truncated, "splice": spliced, "cross": crossed}


def mutation(source: Source, base: str) -> Input:
    """Return a mutated valid file; now and then one that was mutated twice."""
    reader, tolerance, make = BASES[base]
    name = source.draws.choice(sorted(CHANGES))
    data = CHANGES[name](source, make())
    if data and source.draws.random() < 0.1:
        data = flipped(source, data)
    return Input(f"mutated {base}", reader, data, tolerance, base)
