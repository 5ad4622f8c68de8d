"""Every block of every page is run, or stands in a list with a reason; what is a file is read by what reads it."""

import ast
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.not_run import NOT_RUN
from tests.docs.pages import ROOT, Block, blocks
from tests.docs.scenarios import SCENARIOS
from wbar.cli.yaml12 import parsed
from wbar.job_request import JobRequest
from wbar_service.settings import ServiceSettings
from wbar_worker.settings import WorkerSettings

BLOCKS = blocks()
IDS = {"checkpoint": "ckpt_0mk3q8v1zr5d2a7x9c4t", "dataset": "ds_0mk3q8v2zr5d2a7x9c4t"}


def those(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


@pytest.mark.parametrize("block", [pytest.param(block, id=block.place) for block in BLOCKS])
def test_a_block_is_run_or_read_or_listed(block: Block) -> None:
    listed = (block.page, block.first) in NOT_RUN
    if block.language in ("sh", "python"):
        assert listed or block.page in SCENARIOS, "the page needs a scenario, or the block a line in NOT_RUN"
    elif block.language == "text":
        assert listed
    else:
        assert block.language in ("yaml", "nginx"), "it says no language that a test reads"


def test_the_list_names_blocks_that_are_there() -> None:
    assert set(NOT_RUN) <= {(block.page, block.first) for block in BLOCKS}
    assert all(NOT_RUN.values())
    assert set(SCENARIOS) <= {block.page for block in BLOCKS}


@pytest.mark.parametrize("block", those("sh"))
def test_the_shell_reads_it(block: Block) -> None:
    code = block.code.replace("[--", "--").replace("GB]", "GB")
    subprocess.run(["bash", "-n", "-c", code], check=True, timeout=20)


@pytest.mark.parametrize("block", those("python"))
def test_python_reads_it(block: Block) -> None:
    compile(block.code, block.place, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", those("yaml"))
def test_what_reads_the_file_takes_it(block: Block) -> None:
    if block.file == "job.yaml":
        JobRequest.model_validate(
            parsed(block.code.replace("ckpt_…", IDS["checkpoint"]).replace("ds_…", IDS["dataset"])) | IDS
        )
    elif block.file == "prometheus.yml":
        (scraped,) = yaml.safe_load(block.code)["scrape_configs"]
        assert scraped["metrics_path"] == "/metrics"
        assert set(scraped) == {"job_name", "metrics_path", "authorization", "static_configs"}
    else:
        override(block)


def override(block: Block) -> None:
    """A file beside docker-compose.yml: services that are there, with variables of their settings, and the cloud's own."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, service in yaml.safe_load(block.code)["services"].items():
        settings = ServiceSettings if name == "api" else WorkerSettings
        known = {f"WBAR_{field}".upper() for field in settings.model_fields}
        assert name in compose
        assert set(service) <= {"environment", "stop_grace_period"}
        for variable in service.get("environment", {}):
            assert variable in known or variable.startswith("AWS_"), f"{name} has no setting {variable}"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("block", those("nginx"))
def test_nginx_takes_it(block: Block, tmp_path: Path) -> None:
    server = f"server {{ listen 127.0.0.1:1; {block.code} }}\nupstream wbar {{ server 127.0.0.1:2; }}"
    paths = " ".join(
        f"{kind}_temp_path {tmp_path / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"pid {tmp_path / 'pid'}; error_log stderr; events {{}}"
    (tmp_path / "nginx.conf").write_text(f"{head}\nhttp {{ access_log off; {paths}\n{server} }}\n")
    told = subprocess.run(
        ["nginx", "-t", "-c", str(tmp_path / "nginx.conf")], capture_output=True, text=True, timeout=30
    )
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("block", those("sh"))
def test_what_make_python_and_docker_are_asked_for_is_there(block: Block) -> None:
    makefile = (ROOT / "Makefile").read_text()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for target in re.findall(r"^make (\S+)", block.code, re.MULTILINE):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    for module, words in re.findall(r"python -m (benchmarks[\w.]*)(.*)", block.code):
        folder = ROOT / module.replace(".", "/")
        source = (folder / "__main__.py" if folder.is_dir() else folder.with_suffix(".py")).read_text()
        for option in re.findall(r"--[\w-]+", words):
            assert f'"{option}"' in source, (module, option)
    for name in re.findall(r"docker compose (?:run --rm|exec -T) (\S+)", block.code):
        assert name in services
