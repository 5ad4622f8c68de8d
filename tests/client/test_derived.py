"""The blocking client is what the script makes of the asynchronous one, and both have the same public names."""

import ast
import inspect

from tools.derive_client import DERIVED, NOTE, modules
from wbar import AsyncClient, Client


def test_the_derived_modules_are_up_to_date() -> None:
    made = modules()
    assert {path.name for path in DERIVED.glob("*.py")} == set(made)
    for name, text in made.items():
        assert (DERIVED / name).read_text() == text, f"{name}: run `make client`"
        assert text.startswith(NOTE.split("{")[0])
        kinds = {type(node) for node in ast.walk(ast.parse(text))}
        assert not kinds & {ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await}


def names(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(member).parameters)
        for name, member in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_have_the_same_methods_with_the_same_parameters() -> None:
    with Client("http://127.0.0.1:9", "x") as client:
        twin = AsyncClient("http://127.0.0.1:9", "x")
        assert names(Client) == names(AsyncClient)
        resources = {
            name for name, value in vars(client).items() if type(value).__module__.startswith("wbar.client._sync")
        }
        assert resources == {"checkpoints", "datasets", "jobs", "keys", "merges", "studies", "webhooks", "workers"}
        for name in resources:
            assert names(type(getattr(client, name))) == names(type(getattr(twin, name)))
