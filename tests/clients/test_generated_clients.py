"""The schema generates Python clients that do upload → job → poll → download. Other languages: `python -m tests.clients`."""

import os
import sys
from pathlib import Path

import pytest

from tests.clients.generated import FLOWS, generate, run_flow, write_schema
from tests.conftest import Service


def test_openapi_python_client(service: Service, tmp_path: Path) -> None:
    # Its upper bounds hold the command line's libraries back, so it lives in an environment of its own.
    python = os.environ.get("WBAR_TEST_OPENAPI_PYTHON_CLIENT")
    if python is None:
        pytest.skip("WBAR_TEST_OPENAPI_PYTHON_CLIENT names no Python that has the generator (`make clients` makes one)")
    settings = tmp_path / "settings.yml"
    settings.write_text(
        "project_name_override: wbar_generated\npackage_name_override: wbar_generated\npost_hooks: []\n"
        'content_type_overrides: {"application/offset+octet-stream": "application/octet-stream", '
        '"image/png": "application/octet-stream"}\n'
    )
    schema = str(write_schema(service, tmp_path))
    command = [python, "-P", "-m", "openapi_python_client", "generate", "--fail-on-warning", "--meta", "none"]
    generate([*command, "--path", schema, "--config", str(settings), "--output-path", "wbar_generated"], tmp_path)
    run_flow([sys.executable, "-P", str(FLOWS / "openapi_python_client.py")], service, tmp_path, tmp_path)


def test_datamodel_code_generator(service: Service, tmp_path: Path) -> None:
    pytest.importorskip("datamodel_code_generator")
    schema = str(write_schema(service, tmp_path))
    command = [
        sys.executable,
        "-P",
        "-m",
        "datamodel_code_generator",
        "--input",
        schema,
        "--input-file-type",
        "openapi",
    ]
    options = [
        "--output-model-type",
        "pydantic_v2.BaseModel",
        "--enum-field-as-literal",
        "all",
        "--formatters",
        "builtin",
    ]
    generate([*command, *options, "--output", "wbar_models.py"], tmp_path)
    run_flow([sys.executable, "-P", str(FLOWS / "datamodel_code_generator.py")], service, tmp_path, tmp_path)
