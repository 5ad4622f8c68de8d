"""The globals that a pickle names, by reading its opcodes. Nothing is built, imported or called.

torch.load(weights_only=True) has a list of its own, and stops at the first opcode that it does not know: a pickle of
protocol 4 that would run a command looks like a damaged one to it. Here the whole pickle is read before torch sees it,
and a global that no state dict needs is refused by name. Names that the pickle computes, which hides them from scanners
(a memo filled twice, a module's name out of a nested pickle), count as refused.
"""

import io
import pickletools
from collections.abc import Iterator
from typing import Any, cast

from wbar_averaging.quoting import quoted

STORED_OBJECTS = 5  # the legacy format is five pickles, one after another: magic number, version, system, content, keys
MAGIC = 0x1950A86A20F9469CFC6C

# torch.save writes tensors, parameters, and the plain containers that hold them. Of what torch allows by default, the
# constructors of tensors are left out: with a number for an argument they hand back memory as it was left there.
_CONTAINERS = {
    "collections.OrderedDict", "collections.Counter", "builtins.set", "builtins.complex", "builtins.bytearray",
    "__builtin__.set", "__builtin__.complex", "__builtin__.bytearray", "_codecs.encode",
}  # fmt: skip
_REBUILDING = {
    f"torch._utils._rebuild_{kind}"
    for kind in ("parameter", "parameter_with_state", "tensor", "tensor_v2", "tensor_v3", "qtensor", "sparse_tensor",
                 "meta_tensor_no_storage", "device_tensor_from_cpu_tensor", "device_tensor_from_numpy", "nested_tensor",
                 "wrapper_subclass")
}  # fmt: skip
_TORCH = {
    "torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_from_type_v2",
    "torch.serialization._get_layout", "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
}  # fmt: skip
_DTYPES = ("bool", "uint", "int", "float", "bfloat", "complex", "bcomplex", "quint", "qint", "bits", "per_tensor_",
           "per_channel_")  # fmt: skip
_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_PUT, _GET = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_NEUTRAL = {"MEMOIZE", "FRAME", "PROTO", *_PUT}  # opcodes that leave the stack as it is
COMPUTED = "(a computed name)"


def is_harmless(name: str) -> bool:
    """Return whether a state dict may name this global, `module.name`."""
    if name in _CONTAINERS or name in _REBUILDING or name in _TORCH:
        return True
    module, _, last = name.rpartition(".")
    return module in ("torch", "torch.cuda") and (
        (last.endswith("Storage") and last.isalnum()) or (module == "torch" and last.startswith(_DTYPES))
    )


class Opcodes:
    """The globals that the pickles at the start of some bytes name, and how their reading ended.

    refused: the first global that is not harmless, quoted; None where there is none.
    damaged: why the opcodes cannot be read to the end; None where they can.
    end: bytes that were read.
    protocol: the highest.
    """

    def __init__(self, data: bytes) -> None:
        self.refused: str | None = None
        self.damaged: str | None = None
        self.protocol = 0
        stream = io.BytesIO(data)
        for index in range(STORED_OBJECTS):
            is_legacy = False
            try:
                for name in self._globals(stream):
                    if not is_harmless(name) and self.refused is None:
                        self.refused = quoted(name)
                is_legacy = index > 0 or self._first_is_magic
            except Exception as error:
                # pickletools raises almost anything for damaged bytes; the opcodes before that count.
                self.damaged = str(error)
            if self.damaged or not is_legacy:
                break
        self.end = stream.tell()

    def _globals(self, stream: io.BytesIO) -> Iterator[str]:
        memo: dict[int, str | None] = {}
        top: list[str | None] = [None, None]  # the two last values pushed, where they are texts as they stand
        self._first_is_magic = False
        for opcode, given, _ in pickletools.genops(stream):
            name, argument = opcode.name, cast(Any, given)
            if name == "PROTO":
                self.protocol = max(self.protocol, int(argument))
            elif name in ("GLOBAL", "INST"):
                yield ".".join(str(argument).split(" ", 1))
            elif name == "STACK_GLOBAL":
                yield COMPUTED if None in top else f"{top[0]}.{top[1]}"
            elif name in ("EXT1", "EXT2", "EXT4"):
                yield f"copyreg extension {argument}"
            elif name in ("PERSID", "NEXT_BUFFER", "READONLY_BUFFER"):
                yield COMPUTED  # a text as a persistent id, or bytes from outside: torch.save writes neither
            if name in _PUT:
                memo[int(argument)] = top[1]
            elif name == "MEMOIZE":
                memo[len(memo)] = top[1]
            if name not in _NEUTRAL:
                value = argument if name in _TEXT and isinstance(argument, str) else None
                top = [top[1], memo.get(int(argument)) if name in _GET else value]
            self._first_is_magic = self._first_is_magic or (name == "LONG1" and argument == MAGIC)
