"""The form for a new job is made of the request's own schema: each field with its bounds, its default and its description.

A field that is left blank is left out of the request, so that the service decides as it would for `curl`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import ValidationError

from wbar.job_request import JobRequest
from wbar.method import TYPES

# Shown at once, by these names; whatever else the schema has is folded, under the names that it has there.
OPEN = {
    "method.epochs": "How long: epochs",
    "method.cycles": "How long: cycles",
    "method.checkpoints": "Checkpoints to average",
    "method.control": "Compare with a plain fine-tune",
    "name": "Name",
}
# What is folded, by group: a path, or the beginning of paths. What the first groups do not name falls to the last that does.
GROUPS = {
    "Learning rates, phases and averaging": ("method.",),
    "Images and classes": (
        "recipe.image_size", "recipe.normalize", "recipe.augment", "recipe.mixup", "recipe.cutmix", "classes",
        "recipe.class_weights", "recipe.head",
    ),
    "Extra measurements and formats": ("evaluate", "select_on", "probe", "flatness", "surface", "swag", "formats"),
    "Optimizer, batch, precision and regularization": ("recipe.",),
    "Tags, priority, limits and seed": ("",),
}  # fmt: skip
METHODS: Mapping[str, str] = {
    "auto": "recommended: finds its learning rate, picks the best average",
    "cyclic_swa": "high and low rates in turn, the mean of the snapshots (API's default)",
    "swa": "a constant learning rate, the mean of a snapshot per epoch",
    "ema": "a running mean of every training step",
    "lawa": "the mean of the last few snapshots",
    "none": "a plain fine-tune, nothing averaged",
    "soup": "the mean of checkpoints that you have, nothing trained",
}
ELSEWHERE = frozenset({"checkpoint", "dataset", "dry_run", "metadata", "method", "method.type"})
DEFAULT_METHOD = JobRequest.model_fields["method"].get_default(call_default_factory=True).type
# What a blank form has chosen, and says that it has; every other field is left to the service, as for `curl`.
RECOMMENDED: Mapping[str, str] = {"method.type": "auto", "method.control": "true"}


@dataclass(frozen=True)
class Field:
    """One field of the form.

    path: dotted, its name in the form. choices: of a list to choose from; empty for a text. default: as text.
    """

    path: str
    label: str
    description: str
    default: str
    choices: tuple[str, ...] = ()
    lines: bool = False

    @property
    def open(self) -> bool:
        """Whether it is shown at once."""
        return self.path in OPEN

    @property
    def group(self) -> str:
        """The heading that it is folded under."""
        return next(
            group
            for group, paths in GROUPS.items()
            if any(
                self.path == path or ((path.endswith(".") or not path) and self.path.startswith(path)) for path in paths
            )
        )


@cache
def fields(method: str) -> tuple[Field, ...]:
    """Return the fields of a job with this method, in the order of the schema."""
    schema = JobRequest.model_json_schema()
    definitions = schema["$defs"]
    members = (definitions[one["$ref"].rsplit("/", 1)[1]] for one in schema["properties"]["method"]["oneOf"])
    chosen = next(one for one in members if one["properties"]["type"]["const"] == method)
    order = {"method": chosen, **{name: node for name, node in schema["properties"].items() if name != "method"}}
    found = _walk(order, definitions, "")
    first = list(OPEN)
    return tuple(sorted(found, key=lambda field: first.index(field.path) if field.open else len(first)))


@dataclass(frozen=True)
class Group:
    """Fields that are folded together. given: how many of them are filled."""

    heading: str
    fields: tuple[Field, ...]
    given: int


def grouped(method: str, form: Mapping[str, str]) -> list[Group]:
    """Return the folded fields of a job with this method. The tags, which the form writes in one line, count as the last's."""
    found = []
    for heading in GROUPS:
        members = tuple(field for field in fields(method) if not field.open and field.group == heading)
        if members:
            found.append(Group(heading, members, sum(bool(form.get(field.path)) for field in members)))
    return [*found[:-1], replace(found[-1], given=found[-1].given + bool(form.get("metadata")))]


def _walk(properties: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[Field]:
    for name, node in properties.items():
        path = prefix + name
        target = definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
        if "properties" in target:
            yield from _walk(target["properties"], definitions, f"{path}.")
        elif path not in ELSEWHERE:
            yield _field(path, target)


def _field(path: str, node: Mapping[str, Any]) -> Field:
    branches = node.get("anyOf", [node])
    kinds = {branch.get("type") for branch in branches}
    default = node.get("default")
    choices: tuple[str, ...] = ()
    if kinds == {"boolean"}:
        choices = ("true", "false")
    elif "enum" in node:
        choices = tuple(str(one) for one in node["enum"])
    shown = "" if default is None else default if isinstance(default, str) else json.dumps(default)
    label = path.split(".", 1)[1] if path.startswith(("method.", "recipe.")) else path
    label = label.replace("_", " ").replace(".", " · ")
    label = OPEN.get(path, label)
    return Field(path, label, node.get("description", ""), shown, choices, "array" in kinds)


def body_of(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the request that a filled form stands for."""
    method = form.get("method.type", DEFAULT_METHOD)
    body: dict[str, Any] = {"method": {"type": method}}
    lines = {field.path for field in fields(method if method in TYPES else DEFAULT_METHOD) if field.lines}
    for path, text in form.items():
        text = text.strip()
        if not text or path in ("csrf", "token", "metadata", "clone", "base"):
            continue
        node = body
        *outer, last = path.split(".")
        for name in outer:
            inner = node.setdefault(name, {})
            node = inner if isinstance(inner, dict) else {}  # a text that stands where fields are: the text counts
        node[last] = text if path in ("name", "checkpoint", "dataset") else _value(text, path in lines)
    if metadata := form.get("metadata", "").strip():
        body["metadata"] = dict(_tags(metadata))
    return body


def _value(text: str, many: bool) -> Any:
    """Return the value that a text stands for. many: whether it may be several, separated by commas."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    if many and text != "auto" and not isinstance(value, list | dict):
        return [_value(part.strip(), False) for part in text.replace("\n", ",").split(",") if part.strip()]
    return value


def _tags(text: str) -> Iterator[tuple[str, str]]:
    if text.startswith("{"):
        value = _value(text, False)
        yield from value.items() if isinstance(value, dict) else ()
        return
    for pair in text.replace("\n", ",").split(","):
        if pair.strip():
            key, _, value = pair.partition("=")
            yield key.strip(), value.strip()


def filled_with(body: Mapping[str, Any]) -> dict[str, str]:
    """Return the form that stands for a request, which `body_of` reads back."""
    form: dict[str, str] = {}
    method = body.get("method", {}).get("type", DEFAULT_METHOD)
    form["method.type"] = method
    known = {field.path for field in fields(method)}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if prefix + name == "metadata":
                plain = not any("," in text or "\n" in text for text in value.values())
                pairs = ", ".join(f"{key}={text}" for key, text in value.items())
                form["metadata"] = pairs if plain and not pairs.startswith("{") else json.dumps(value)
            elif isinstance(value, dict) and prefix + name not in known:
                walk(value, f"{prefix}{name}.")
            elif value is not None:
                form[prefix + name] = value if isinstance(value, str) else json.dumps(value)

    walk(body, "")
    return form


@dataclass(frozen=True)
class Filled:
    """A filled form: the request where it is a good one, else what is wrong, by the path of the field; `""`: the rest."""

    request: JobRequest | None
    faults: Mapping[str, str]


def read(form: Mapping[str, str]) -> Filled:
    """Return the request that the form stands for, or its faults."""
    body = body_of(form)
    missing = {name: f"choose a {name}" for name in ("checkpoint", "dataset") if not body.get(name)}
    if missing:
        return Filled(None, missing)
    try:
        return Filled(JobRequest.model_validate(body), {})
    except ValidationError as error:
        known = {field.path for field in fields(body["method"]["type"])} if body["method"]["type"] in TYPES else set()
        faults: dict[str, str] = {}
        for failure in error.errors(include_url=False):
            path = place(body, list(failure["loc"]))
            message = str(failure["msg"]).removeprefix("Value error, ")
            faults.setdefault(
                path if path in known | {"name"} else "", message if path in known else f"{path}: {message}"
            )
        return Filled(None, faults)


def place(body: Any, loc: list[Any]) -> str:
    """Return the dotted path of an error by walking the body: branches of unions are in pydantic's paths, and no places."""
    kept: list[str] = []
    node = body
    for part in loc:
        if isinstance(node, dict) and part in node:
            kept.append(str(part))
            node = node[part]
    return ".".join(kept)
