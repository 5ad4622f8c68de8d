"""Pickles that would run a command, by every way that a pickle has to call something."""

import builtins
import importlib
import os
import pickle
import struct
import subprocess
from collections.abc import Callable
from typing import Any

import torch

from tests.fuzz.inputs import Source


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value.encode())]) + value.encode()


def _system(source: Source) -> Any:
    command = source.command()
    return source.draws.choice(
        (
            _Call(os.system, command),
            _Call(os.popen, command),
            _Call(subprocess.check_output, ["sh", "-c", command]),
            _Call(builtins.eval, f"__import__('os').system({command!r})"),
            _Call(builtins.exec, f"import os; os.system({command!r})"),
            _Call(importlib.import_module, "antigravity"),
            _Call(getattr, _Call(importlib.import_module, "os"), "system"),
            _Call(open, command.split()[1], "w"),
            _Call(pickle.loads, pickle.dumps(_Call(os.system, command))),
            _Call(torch.load, command.split()[1]),
            _Call(torch.FloatTensor, 1000),
            _Call(torch.hub.load, "a/b", "c"),
            _Call(torch._utils._rebuild_parameter, _Call(os.system, command), False, {}),
        )
    )


def by_object(source: Source) -> bytes:
    """What pickle itself writes, in any protocol, somewhere in a checkpoint."""
    evil = _system(source)
    content = source.draws.choice((evil, {"state_dict": {"w": evil}}, [1, (evil,)], {"epoch": 3, "x": [evil]}))
    return pickle.dumps(content, source.draws.randrange(pickle.HIGHEST_PROTOCOL + 1))


def by_global(source: Source) -> bytes:
    return b"\x80\x02cposix\nsystem\n" + _text(source.command()) + b"\x85R."


def by_stack_global(source: Source) -> bytes:
    """The names lie on the stack, come out of the memo, or were overwritten there."""
    call = _short(source.command()) + b"\x85R."
    return b"\x80\x04" + source.draws.choice(
        (
            _short("posix") + _short("system") + b"\x93",
            _short("collections") + b"\x94\x30" + _short("posix") + b"q\x000" + _short("system") + b"q\x010h\x00h\x01\x93",
            _short("posix") + b"\x94" + _short("system") + b"\x94" + b"K\x010" + b"\x93",
            _short("posix") + b"\x94\x30h\x00" + _short("system") + b"\x93",
            _text("posix") + b"r\xff\xff\x00\x000" + b"j\xff\xff\x00\x00" + _short("system") + b"\x93",
            b"\x95" + bytes(8) + _short("posix") + _short("system") + b"\x93",
        )
    ) + call  # fmt: skip


def by_inst(source: Source) -> bytes:
    command = source.command()
    return source.draws.choice(
        (
            b"(S'" + command.encode() + b"'\niposix\nsystem\n.",
            b"(cposix\nsystem\nS'" + command.encode() + b"'\no.",
            b"\x80\x02cposix\nsystem\n(" + _text(command) + b"t\x81.",
            b"\x80\x04cposix\nsystem\n(" + _text(command) + b"t}\x92.",
        )
    )


def by_extension(source: Source) -> bytes:
    return (
        b"\x80\x02"
        + source.draws.choice((b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"))
        + _text(source.command())
        + b"\x85R."
    )


def by_persistent_id(source: Source) -> bytes:
    return source.draws.choice(
        (b"\x80\x02P" + source.command().encode() + b"\n.", b"\x80\x02cposix\nsystem\nQ.", b"\x80\x05]]]]0000\x97\x98.")
    )


def broken_after(source: Source) -> bytes:
    """The payload first, then bytes that end the reading: a scanner that wants a whole pickle sees nothing."""
    payload = source.draws.choice((by_global, by_stack_global))(source)[:-1]
    return payload + source.draws.choice(
        (b"", b"\xff\xff", b"X\xff\xff\xff\xff", b"cos\n", b"\x8d" + b"\xff" * 8, b"0" * 100)
    )


def hidden_between(source: Source) -> bytes:
    """Thousands of harmless opcodes before the payload."""
    noise = source.draws.choice((b"N0", b"(t0", b"]0", b"K\x010", _text("x" * 50) + b"0")) * source.draws.choice(
        (10, 1000, 100_000)
    )
    return b"\x80\x02" + noise + by_global(source)[2:]


PAYLOADS = (
    by_object,
    by_global,
    by_stack_global,
    by_inst,
    by_extension,
    by_persistent_id,
    broken_after,
    hidden_between,
)


def payload(source: Source) -> bytes:
    """Return a pickle that would run a command where anything unpickled it."""
    return source.draws.choice(PAYLOADS)(source)


def harmless_bomb(source: Source) -> bytes:
    """Pickles that call nothing that is forbidden, and ask for memory, depth or nonsense."""
    return source.draws.choice(
        (
            b"\x80\x02cbuiltins\nbytearray\n" + b"\x8a\x05\xff\xff\xff\xff\x7f" + b"\x85R.",
            b"\x80\x02" + b"(" * 100_000 + b".",
            b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
            b"\x80\x02]" + b"2" * 50 + b"a" * 40 + b".",
            b"\x80\x02h\x05.",
            b"\x80\x02j\xff\xff\xff\xff.",
            b"\x80\x020000.",
            b"\x80\x02}(K\x01K\x02K\x03u.",
            b"\x80\x02ctorch\nSize\n" + _text("ab") + b"\x85R.",
            b"\x80\x02X\xff\xff\xff\xffabc.",
            b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".",
            b"\x80\x02ccollections\nOrderedDict\n)R}(" + _text("__class__") + b"K\x01ub.",
            b"\x80\x02]q\x00h\x00a.",
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(t(tI00\nN" + b"tR.",
            b"\x80\x02ctorch\nFloatStorage\n\x8a\x06\xff\xff\xff\xff\xff\x7f\x85R.",
        )
    )
