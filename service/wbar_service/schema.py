"""The OpenAPI schema in the form that generators of clients read.

pydantic writes JSON Schema 2020-12, of which the generators understand a part. Each step here replaces a form by one that
allows the same values: `const` by an `enum` of one, a tuple of equal items by an array of that length, a union whose members
carry one fixed `type` each by the same union with a `discriminator`. The generators want the discriminating property to be
required, so the schema asks for `type` also where the route would do without it.

Defaults of requests move into the descriptions. A `default` makes openapi-typescript call a field required, and others send
it with every request; a client that leaves the field out gets the default of the service that it talks to.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from wbar.catalog import BUILTINS

REF = "#/components/schemas/"
UNUSED = ("HTTPValidationError", "ValidationError")  # the framework's own, which no answer has


def operation_id(route: APIRoute) -> str:
    """Return a route's name as generated code says it: `create_checkpoint` becomes `createCheckpoint`."""
    first, *others = route.name.split("_")
    return first + "".join(word.capitalize() for word in others)


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to the schema of a model that `document` was given."""
    return {"$ref": REF + model.__name__}


def document(app: FastAPI, sources: list[str], *models: type[BaseModel]) -> None:
    """Replace the app's schema by one for generators.

    sources: roots that datasets may be named below; where there are none, the document offers none.
    models: those that only hand-written request bodies refer to, which the framework does not know, and those with examples.
    """
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            components = schema["components"]["schemas"]
            for model in models:
                written = model.model_json_schema(ref_template=REF + "{model}")
                for node in _nodes(written):
                    if node.get("default", ...) is None:  # as the framework does it
                        del node["default"]
                for name, nested in written.pop("$defs", {}).items():
                    components.setdefault(name, nested)
                component = components.setdefault(model.__name__, written)
                # The framework drops every null, from the examples too.
                component.update({name: written[name] for name in ("example", "examples") if name in written})
            for name in UNUSED:
                components.pop(name, None)
            app.openapi_schema = schema = _with_plain_names(schema)
            _rewrite(schema)
            _name_sources(schema, sources)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema


def _with_plain_names(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with `Page_Job_`, the framework's name for a generic model, replaced by its title, `JobPage`."""
    text = json.dumps(schema)
    for name, component in schema["components"]["schemas"].items():
        if name.endswith("_"):
            text = text.replace(f'"{name}"', f'"{component["title"]}"').replace(
                f'{REF}{name}"', f'{REF}{component["title"]}"'
            )
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def _rewrite(schema: dict[str, Any]) -> None:
    components = schema["components"]["schemas"]
    for operation in _operations(schema):
        for response in operation["responses"].values():
            if _references(response) & {"Problem", *UNUSED}:
                # The framework assumes application/json, and its own shape for what does not fit the schema.
                response["content"] = {"application/problem+json": {"schema": {"$ref": f"{REF}Problem"}}}
        for parameter in operation.get("parameters", []):
            _without_null(parameter["schema"])
        if operation.get("security"):  # of the routes that check parameters and bodies themselves
            _add_problem(operation, 422, "The request does not fit")
            if "application/json" in operation.get("requestBody", {}).get("content", {}):
                _add_problem(operation, 415, "Another content type")
    for node in _nodes(schema):
        _replace_const(node)
        _replace_tuple(node)
        _replace_pattern_properties(node)
        _replace_bounds(node)
        _add_discriminator(node, components)
    for name in _sent_by_clients(schema):
        for node in _nodes(components[name]):
            _describe_default(node)


def _add_problem(operation: dict[str, Any], status: int, description: str) -> None:
    content = {"application/problem+json": {"schema": {"$ref": f"{REF}Problem"}}}
    operation["responses"].setdefault(str(status), {"description": description, "content": content})


def _operations(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in schema["paths"].values():
        yield from path.values()


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the node and every object inside it, but for examples, which are data and no schemas."""
    if isinstance(node, dict):
        yield node
        for name, child in node.items():
            if name not in ("example", "examples"):
                yield from _nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from _nodes(child)


def _without_null(node: dict[str, Any]) -> None:
    """Drop null from a parameter: no query or header can be null, one that may be left out is just not required."""
    choices = [choice for choice in node.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        del node["anyOf"]
        node.update({**choices[0], **node})


def _replace_const(node: dict[str, Any]) -> None:
    if "const" in node and "type" in node:
        node["enum"] = [node.pop("const")]


def _replace_tuple(node: dict[str, Any]) -> None:
    items = node.get("prefixItems")
    if items and all(item == items[0] for item in items):
        del node["prefixItems"]
        node["items"] = items[0]


def _replace_pattern_properties(node: dict[str, Any]) -> None:
    """Say of a map with one pattern that its names have it: `patternProperties` alone allows all others too."""
    if len(node.get("patternProperties", {})) == 1:
        [(pattern, values)] = node.pop("patternProperties").items()
        node["propertyNames"] = {**node.get("propertyNames", {}), "pattern": pattern}
        node["additionalProperties"] = values


def _replace_bounds(node: dict[str, Any]) -> None:
    """Name the bounds of a union of numbers as JSON Schema does; pydantic leaves its own names there."""
    for ours, theirs in (("gt", "exclusiveMinimum"), ("ge", "minimum"), ("lt", "exclusiveMaximum"), ("le", "maximum")):
        if "anyOf" in node and ours in node:
            node[theirs] = node.pop(ours)


def _name_sources(schema: dict[str, Any], sources: list[str]) -> None:
    """Offer the sources that this service has: its built-in sets, and what lies below the operator's roots."""
    allowed = [rf"builtin:({'|'.join(BUILTINS)})$", *(f"{re.escape(root.rstrip('/'))}/" for root in sources)]
    schema["components"]["schemas"]["DatasetSource"]["properties"]["source"]["pattern"] = f"^({'|'.join(allowed)})"
    if not sources:
        body = schema["paths"]["/v1/datasets"]["post"]["requestBody"]["content"]["application/json"]
        body["examples"] = {
            name: one
            for name, one in body["examples"].items()
            if one["value"].get("source", "builtin:").startswith("builtin:")
        }


def _add_discriminator(node: dict[str, Any], components: dict[str, Any]) -> None:
    """Name the member of a union by its `type`, where every member has another fixed one."""
    members = [member.get("$ref", "").removeprefix(REF) for member in node.get("oneOf", [])]
    if not members or any(member not in components for member in members):
        return
    mapping = {}
    for member in members:
        kind = components[member].get("properties", {}).get("type", {})
        fixed = kind.get("enum", [kind.get("const")])
        if len(fixed) != 1 or fixed[0] is None:
            return
        mapping[fixed[0]] = REF + member
    for member in members:
        required = components[member].setdefault("required", [])
        if "type" not in required:
            required.append("type")
    node["discriminator"] = {"propertyName": "type", "mapping": mapping}


def _sent_by_clients(schema: dict[str, Any]) -> set[str]:
    """Return the names of the components that request bodies consist of."""
    bodies = [operation["requestBody"] for operation in _operations(schema) if "requestBody" in operation]
    names, fresh = set[str](), _references(bodies)
    while fresh:
        names |= fresh
        fresh = _references([schema["components"]["schemas"][name] for name in fresh]) - names
    return names


def _references(node: Any) -> set[str]:
    return {child["$ref"].removeprefix(REF) for child in _nodes(node) if isinstance(child.get("$ref"), str)}


def _describe_default(node: dict[str, Any]) -> None:
    """Say the default in words. A schema has one beside its type; a property that is called `default` has not."""
    if "default" not in node or not {"type", "anyOf", "oneOf", "allOf", "$ref"} & node.keys():
        return
    default = node.pop("default")
    if default is not None:
        description = node.get("description", "")
        node["description"] = f"{description} Default: `{json.dumps(default)}`.".strip()
