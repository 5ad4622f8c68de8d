"""What lies beside the weights of a model: copied to the result, unless it names code to run or is of another model.

A list of names says what is copied; programs (`*.py`) are not on it, and a configuration whose `auto_map` would have a reader
run some is refused. A result's folder gets its name when all of it is written and synced.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wbar_averaging.checkpoint_file import refuse_outside
from wbar_averaging.quoting import quoted, reason, shown
from wbar_averaging.replacing import sync_folder

CONFIG = "config.json"
CARRIED = (
    CONFIG, "generation_config.json", "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt",
    "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
MAX_CONFIG = 8 * 1024 * 1024  # bytes; id2label of a hundred thousand classes has four
CODE_KEYS = ("auto_map", "custom_pipelines")  # what makes transformers import a program that lies beside the weights
# Keys that change what equal tensors compute. There are others: what is not known here is not compared.
COMPUTING = re.compile(
    r"(.*_)?heads?(_kv)?|head_dim|(.*_)?(act|activation)(_fn|_function)?|(.*_)?eps(ilon)?|rope_.*|partial_rotary_factor|"
    r"(.*_)?window(_size)?s?|(?!doc_)(.*_)?strides?|num_groups|num_experts_per_tok|position_embedding_type|layer_types?"
)
PLACEHOLDER = re.compile(r"LABEL_\d+")  # the name that transformers gives a class without one
TORCH_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


class UnfitConfig(ValueError):
    """A configuration beside a checkpoint names code, cannot be read, or is of another model; the message says which."""


def carried_files(sources: Sequence[Path]) -> list[Path]:
    """Return the files that go with the result: those of the first source, where it is a folder or an index.

    Raises UnfitConfig for a configuration that names code, or that differs from the first source's in model or classes.
    """
    folders = [folder for folder in map(_folder_of, sources) if folder is not None]
    if not folders or _folder_of(sources[0]) is None:
        return []
    first, *others = folders
    carried = [first / name for name in CARRIED if (first / name).is_file()]
    for path in carried:
        refuse_outside(first, path)
        if path.name.endswith(CONFIG):
            read_config(path)
    if first / CONFIG in carried:
        for other in others:
            if (other / CONFIG).is_file():
                _compare(first / CONFIG, other / CONFIG)
    return carried


def _folder_of(source: Path) -> Path | None:
    if source.is_dir():
        return source
    return source.parent if source.name.endswith(".index.json") else None


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration. Raises UnfitConfig for one that is no JSON object, or names code."""
    if path.stat().st_size > MAX_CONFIG:
        raise UnfitConfig(f"{path}: larger than the limit of {MAX_CONFIG} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnfitConfig(f"{path}: is not JSON: {reason(error)}") from None
    if not isinstance(config, dict):
        raise UnfitConfig(f"{path}: is a JSON {type(config).__name__}, not an object")
    _refuse_code(path, config)
    return config


def _refuse_code(path: Path, config: dict[str, Any]) -> None:
    """Look at all levels; json.loads has bounded them."""
    parts: list[Any] = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            for key in CODE_KEYS:
                if part.get(key):
                    named = quoted(json.dumps(part[key]), 120)
                    raise UnfitConfig(
                        f"{path}: {key} names code to run ({named}); none was run, and the folder is not merged: take it out, "
                        "or merge into a single ….safetensors file"
                    )
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


def _compare(first: Path, other: Path) -> None:
    """Raise UnfitConfig where two configurations are of networks that are known to compute other things from equal tensors.

    A key that only one has says nothing: libraries of different versions write different defaults.
    """
    ours, theirs = read_config(first), read_config(other)
    for key in ("model_type", "architectures"):
        if ours.get(key) != theirs.get(key):
            raise UnfitConfig(f"{key}: {_value(ours.get(key))} in {first}, {_value(theirs.get(key))} in {other}")
    here, there = (_classes(config) for config in (ours, theirs))
    if len(here) != len(there):
        raise UnfitConfig(f"id2label: {len(here)} classes in {first}, {len(there)} in {other}")
    for n, name in here.items():
        names = (name, there.get(n))
        if names[0] != names[1] and not any(PLACEHOLDER.fullmatch(str(one)) for one in names):
            raise UnfitConfig(f"id2label: class {n} is {_value(name)} in {first}, {_value(names[1])} in {other}")
    mine, others = dict(_leaves(ours)), dict(_leaves(theirs))
    for key in (key for key in mine if key in others and _differ(mine[key], others[key])):
        raise UnfitConfig(
            f"{shown(key)}: {_value(mine[key])} in {first}, {_value(others[key])} in {other}: equal tensors are different "
            "networks there"
        )


def _leaves(config: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a configuration says of what is computed, by dotted paths."""
    for key, value in config.items():
        if COMPUTING.fullmatch(key):
            yield before + key, value
        elif isinstance(value, dict):
            yield from _leaves(value, f"{before}{key}.")


def _differ(one: Any, other: Any) -> bool:
    """Return whether two values of a key say different things; of two objects the keys count that both have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return any(_differ(value, other[key]) for key, value in one.items() if key in other)
    given = other if one is None else one if other is None else None
    if isinstance(given, dict):  # nothing, and the usual by its name
        return given.get("rope_type", given.get("type")) != "default"
    return bool(one != other)


def _value(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _classes(config: dict[str, Any]) -> dict[str, Any]:
    labels = config.get("id2label")
    return labels if isinstance(labels, dict) else {}


def copy_files(paths: Sequence[Path], folder: Path, chosen: str | None) -> None:
    """Copy files to `folder`; `config.json` tells the chosen dtype, where it told one. Raises OSError."""
    for path in paths:
        target = folder / path.name
        config = json.loads(path.read_bytes()) if chosen and path.name == CONFIG else {}
        told = [key for key in ("dtype", "torch_dtype") if isinstance(config.get(key), str)]
        if chosen and told:
            content = config | dict.fromkeys(told, TORCH_NAMES[chosen])
            target.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            shutil.copyfile(path, target)
        _sync_file(target)


@contextmanager
def place_folder(out: Path) -> Iterator[tuple[Path, Path]]:
    """Give a scratch folder and the new folder, which gets the name `out` when the block ends well.

    Raises FileExistsError where `out` is a file or a folder that is not empty, FileNotFoundError without a folder to write to.
    """
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: there is no such folder to write to")
    if out.is_symlink():
        raise FileExistsError(f"{out}: is a link, and a new folder would take its place: name what it leads to")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: is there already, and a folder of a model is not replaced: choose another name")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        scratch, folder = Path(name) / "scratch", Path(name) / "model"
        scratch.mkdir()
        folder.mkdir()
        yield scratch, folder
        sync_folder(folder)
        os.replace(folder, out)
        sync_folder(out.parent)


def _sync_file(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
