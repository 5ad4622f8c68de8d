"""Where weights come from: a module, wrapped or compiled, or a dict of names to tensors; checked before anything changes.

Names are those of `state_dict`, without the wrappers' prefixes: parameters and persistent buffers. Tensors that a model
shares under several names are one tensor here, and count once.
"""

from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

Source = nn.Module | Mapping[str, Tensor]
_Slot = tuple[dict[str, Tensor | None], str]  # the table that a tensor hangs in, and its key there
WRAPPERS = {"DistributedDataParallel": "module", "DataParallel": "module", "OptimizedModule": "_orig_mod"}


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the user's own module inside DistributedDataParallel, DataParallel and torch.compile, in any order."""
    while type(module).__name__ in WRAPPERS:
        inner = getattr(module, WRAPPERS[type(module).__name__], None)
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module


def named_tensors(source: Source) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name, shared tensors under each of their names. Nothing is copied."""
    if not isinstance(source, nn.Module):
        return dict(source)
    return _held(_slots(unwrapped(source)))


def _held(slots: "dict[str, _Slot]") -> dict[str, Tensor]:
    return {name: tensor for name, (table, key) in slots.items() if (tensor := table[key]) is not None}


def _slots(module: nn.Module) -> dict[str, _Slot]:
    """Where each named tensor hangs: looking there again costs a tenth of `state_dict()`."""
    slots: dict[str, _Slot] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for table, skipped in ((part._parameters, ()), (part._buffers, part._non_persistent_buffers_set)):
            for key, tensor in table.items():
                if tensor is not None and key not in skipped:
                    slots[prefix + key] = (table, key)
    return slots


class Reader:
    """Reads sources of one fixed set of names and shapes, again and again and fast.

    like: fixes the names, shapes and which names are one tensor; `names` are the distinct tensors' first names and
    `aliases` maps every further name to its first.
    """

    def __init__(self, like: Source) -> None:
        self.names: list[str] = []
        self.aliases: dict[str, str] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.every: list[str] = []
        first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
        for name, tensor in named_tensors(like).items():
            # Identity of memory, not of values; tensors without any (empty, meta) are never the same.
            place = (tensor.data_ptr() if tensor.numel() else 0, tensor.shape, tensor.stride())
            self.every.append(name)
            if place[0] and place in first:
                self.aliases[name] = first[place]
                continue
            first[place] = name
            self.names.append(name)
            self.shapes[name] = tensor.shape
        self._shape_list = list(self.shapes.values())
        self._forget()

    def _forget(self) -> None:
        self._module: ref[nn.Module] | None = None
        self._children: list[tuple[Mapping[str, nn.Module | None], list[nn.Module | None]]] = []
        self._twins: list[tuple[_Slot, _Slot]] = []  # the places of one shared tensor
        self._tables: list[Mapping[str, Tensor | None]] = []
        self._lengths: list[int] = []
        self._slots: list[_Slot] = []

    def __getstate__(self) -> dict[str, Any]:
        # A copy must find its own way to the module: what is remembered of it points into this one's.
        remembered = ("_module", "_children", "_twins", "_tables", "_lengths", "_slots")
        return {name: value for name, value in vars(self).items() if name not in remembered}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def names_of(self, name: str) -> list[str]:
        """Return `name` and every alias of it."""
        return [name, *(alias for alias, first in self.aliases.items() if first == name)]

    def read(self, source: Source) -> list[Tensor]:
        """Return the source's tensors in the order of `names`.

        Raises ValueError, naming the tensor, on other names or shapes.
        """
        if isinstance(source, nn.Module):
            return self._read_module(unwrapped(source))
        return self._checked(dict(source))

    def _read_module(self, module: nn.Module) -> list[Tensor]:
        if self._module is not None and self._module() is module and self._as_remembered():
            # One that is gone makes the list shorter, which no list of shapes equals.
            tensors = [tensor for table, key in self._slots if (tensor := table.get(key)) is not None]
            if [tensor.shape for tensor in tensors] == self._shape_list:
                return tensors
        self._forget()
        slots = _slots(module)
        tensors = self._checked(_held(slots))
        self._module = ref(module)
        self._slots = [slots[name] for name in self.names]
        tables: dict[int, Mapping[str, Tensor | None]]
        tables = {id(table): table for part in module.modules() for table in (part._parameters, part._buffers)}
        self._tables = list(tables.values())
        self._lengths = [len(table) for table in self._tables]
        self._children = [(part._modules, list(part._modules.values())) for part in module.modules() if part._modules]
        self._twins = [(slots[alias], slots[first]) for alias, first in self.aliases.items()]
        return tensors

    def _as_remembered(self) -> bool:
        """Whether the module is built as it was: no part, parameter or buffer more, less or replaced by another part."""
        return (
            [len(table) for table in self._tables] == self._lengths
            and all(list(table.values()) == parts for table, parts in self._children)
            and all(table[key] is other[twin] for (table, key), (other, twin) in self._twins)
        )

    def _checked(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        self.check_names(tensors, self.every)
        for name, original in self.aliases.items():
            one, other = tensors[original], tensors[name]
            if one.data_ptr() != other.data_ptr() and not torch.equal(one, other):
                raise ValueError(f"{original} and {name} are one tensor in the mean and two that differ in the source")
        return [tensors[name] for name in self.names]

    def check_names(self, tensors: Mapping[str, Tensor], names: list[str]) -> None:
        """Raise ValueError unless `tensors` has just these names, with the known shapes."""
        missing, unexpected = sorted(set(names) - tensors.keys()), sorted(tensors.keys() - set(names))
        if missing or unexpected:
            raise ValueError(f"the source has other tensors: missing {missing[:20]}, unexpected {unexpected[:20]}")
        for name, shape in self.shapes.items():
            if tensors[name].shape != shape:
                raise ValueError(f"{name}: {tuple(tensors[name].shape)} in the source, {tuple(shape)} in the mean")


WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def first_not_finite(names: list[str], tensors: list[Tensor]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity, or None. Each byte is read once, none copied."""
    chosen = [(name, tensor) for name, tensor in zip(names, tensors, strict=True) if tensor.is_floating_point()]
    by_place: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for _, tensor in chosen:
        by_place.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach())
    if all(bool(torch.stack(_sums(group)).isfinite().all()) for group in by_place.values()):
        return None
    return next((name for name, tensor in chosen if not bool(torch.isfinite(tensor).all())), None)


def _sums(tensors: list[Tensor]) -> list[Tensor]:
    """A number for each tensor of one device and dtype, which is finite only if every element is.

    A sum costs the least of all tests; one that overflows is looked at again. On a GPU, where hundreds of small sums cost their
    launches, it is the sum of magnitudes of the whole list at once.
    """
    dtype = tensors[0].dtype
    wide = WIDE.get(dtype)
    if tensors[0].is_cuda and (wide is not None or dtype in (torch.float32, torch.float64)):
        full = [tensor for tensor in tensors if tensor.numel()]
        return list(torch._foreach_norm(full, 1, dtype=wide)) if full else [tensors[0].sum()]
    return [tensor.sum(dtype=wide) for tensor in tensors]
