"""Objects that are given on the command line as JSON, or as @FILE in JSON or YAML (@- reads stdin)."""

import json
import sys
from pathlib import Path
from typing import Any

import typer

CLIENTS_OWN = ("idempotency_key", "self", "job_id")  # parameters of its methods that no request has


def read_object(text: str | None, option: str) -> dict[str, Any]:
    """Parse an object. option: that it was given by. Raises BadParameter for anything else."""
    if text is None:
        return {}
    source, content = "the text", text
    if text.startswith("@"):
        source, content = text[1:], _content(text[1:], option)
    try:
        value = _parsed(content, yaml_too=text.startswith("@"))
    except ValueError as error:
        raise typer.BadParameter(f"{source} is {error}", param_hint=option) from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise typer.BadParameter(f"a JSON object is wanted, not {content[:40].strip()}", param_hint=option)
    return value


def read_request(text: str | None, option: str) -> dict[str, Any]:
    """Parse what goes to the client as keywords. Raises BadParameter, also for a name that is the client's own."""
    body = read_object(text, option)
    for name in CLIENTS_OWN:
        if name in body:
            raise typer.BadParameter(f"{name} is no field of a request", param_hint=option)
    return body


def _content(path: str, option: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}", param_hint=option) from None
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{path} cannot be read: it is not UTF-8 text", param_hint=option) from None


def _parsed(content: str, yaml_too: bool) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        if not yaml_too:
            raise ValueError(f"no JSON: {error}") from None
    from wbar.cli.yaml12 import parsed

    return parsed(content)
