"""What wrappers add to the names of a module's tensors, seen through: `module.0.weight` is `0.weight` inside a wrapper.

Two sets of names are the same tensors if they are equal; or equal without the parts that torch's wrappers are known to
add, anywhere in a name (a compiled or checkpointed part has its own); or if all names of one are all names of the other
after one common prefix, whatever the wrapper calls its inner module. Anything else is another model.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

# DataParallel and DistributedDataParallel; torch.compile; FullyShardedDataParallel; activation checkpointing.
WRAPPER_PARTS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
LISTED = 20  # names in an error


def under_names(names: Collection[str], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` by `names`, where theirs differ by a wrapper only. Raises ValueError, saying what is missing and what is
    unexpected, if they differ otherwise."""
    pairs = _equal_names(names, tensors)
    if pairs is None:
        pairs = _prefixed_names(names, tensors)
    if pairs is None:
        missing, unexpected = sorted(set(names) - tensors.keys()), sorted(tensors.keys() - set(names))
        raise ValueError(
            f"the source has other tensors: missing {missing[:LISTED]}, unexpected {unexpected[:LISTED]}: give the model "
            "that was averaged so far, or a wrapper around it"
        )
    return {name: tensors[other] for name, other in pairs.items()}


def _equal_names(names: Collection[str], others: Collection[str]) -> dict[str, str] | None:
    if set(names) == set(others):
        return {name: name for name in names}
    bare, bare_others = {_bare(name): name for name in names}, {_bare(other): other for other in others}
    if bare.keys() != bare_others.keys() or len(bare) != len(names) or len(bare_others) != len(others):
        return None
    return {name: bare_others[key] for key, name in bare.items()}


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS)


def _prefixed_names(names: Collection[str], others: Collection[str]) -> dict[str, str] | None:
    """By one common prefix of all `others`, or else of all `names`."""
    if (prefix := _common_prefix(names, others)) is not None:
        return {name: prefix + name for name in names}
    if (prefix := _common_prefix(others, names)) is not None:
        return {name: name.removeprefix(prefix) for name in names}
    return None


def _common_prefix(inner: Collection[str], outer: Collection[str]) -> str | None:
    """P with {P + name} of all `inner` names being all `outer` names."""
    first = next(iter(inner), None)
    prefixes = [name.removesuffix(first) for name in outer if first is not None and name.endswith(f".{first}")]
    return next((prefix for prefix in prefixes if {prefix + name for name in inner} == set(outer)), None)
