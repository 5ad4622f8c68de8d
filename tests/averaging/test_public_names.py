"""The stub is the one list of public names: each comes from the module it says, when it is first used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import wbar
import wbar_averaging

ROOT = Path(__file__).parents[2]


def listed(package: str) -> dict[str, str]:
    """The module of each name that the package's stub lists."""
    stub = Path(import_module(package).__file__ or "").with_suffix(".pyi")
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"{package}.{node.module}" for node in imports for alias in node.names}


@pytest.mark.parametrize("package", ["wbar", "wbar_averaging"])
def test_every_name_of_the_stub_is_its_modules(package: str) -> None:
    names = listed(package)
    assert names
    assert set(names) <= set(import_module(package).__all__)
    for name, module in names.items():
        assert getattr(import_module(package), name) is getattr(import_module(module), name)


@pytest.mark.parametrize("package", [wbar, wbar_averaging])
def test_a_name_that_is_not_there_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        package.nothing_of_the_kind  # type: ignore[attr-defined]  # noqa: B018  # that it raises is the test


def test_a_names_module_is_loaded_with_it_and_no_other() -> None:
    code = """
import sys, wbar_averaging
assert not {"torch", "numpy", "plotly"} & sys.modules.keys()
wbar_averaging.CyclicSchedule
wbar_averaging.read_header
assert "torch" not in sys.modules
wbar_averaging.RunningMean
assert "torch" in sys.modules and "wbar_averaging.swag" not in sys.modules
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=ROOT)
