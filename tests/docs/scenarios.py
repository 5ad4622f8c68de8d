"""What each page leaves to its reader, and the running of its blocks: files first, one shell, one Python program."""

import os
import shlex
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.conftest import Service, wait_until
from tests.docs.not_run import NOT_RUN
from tests.docs.pages import ROOT, Block, blocks_of
from tests.material import start_state, turned_archive, write_archive, write_start
from tests.service.test_embedded import Up
from wbar_averaging import write_safetensors

# Blocks may await at their top level, as a notebook's cells may.
PROGRAM = """
import ast, asyncio, inspect, sys
names = {"__name__": "__main__"}
for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        source = file.read()
    code = compile(source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    waiting = eval(code, names)
    if inspect.iscoroutine(waiting):
        asyncio.run(waiting)
"""


@dataclass(frozen=True)
class Scenario:
    """A page as its reader meets it.

    replaced: what the reader puts in, in the place of what stands on the page. given: Python before the first block,
    what the page says that the reader has. environment: beside WBAR_URL and WBAR_API_KEY.
    """

    page: str
    replaced: Mapping[str, str] = field(default_factory=dict)
    given: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def blocks(self, *languages: str) -> list[Block]:
        """The blocks in these languages, without those that are not run and those that are files."""
        return [
            block
            for block in blocks_of(ROOT / self.page)
            if block.language in languages and (block.page, block.first) not in NOT_RUN and block.file is None
        ]

    def text(self, block: Block) -> str:
        """The block as the reader types it."""
        code = block.code
        for shown, put_in in self.replaced.items():
            code = code.replace(shown, put_in)
        return code

    def write_files(self, folder: Path) -> None:
        """Write the files that the page shows into `folder`."""
        for block in blocks_of(ROOT / self.page):
            if block.file is not None:
                (folder / block.file).write_text(self.text(block))

    def run_shell(self, folder: Path, service: Service | None = None) -> str:
        """Type the shell blocks in one session in `folder`, and return what was printed. The first that fails, fails it."""
        (folder / "bin").mkdir(exist_ok=True)
        for name, words in (("wbar", ["-m", "wbar.cli"]), ("python", []), ("python3", [])):
            program = folder / "bin" / name
            start = shlex.join([sys.executable, "-P", *words])
            program.write_text(f'#!/bin/sh\nexec {start} "$@"\n')
            program.chmod(0o755)
        lines = "\n".join(self.text(block) for block in self.blocks("sh"))
        return self._run(["bash", "-euo", "pipefail", "-c", lines], folder, service)

    def run_python(self, folder: Path, service: Service | None = None) -> str:
        """Run the Python blocks as one program in `folder`, and return what was printed. Warnings are errors."""
        (folder / "given.py").write_text(textwrap.dedent(self.given))
        paths = [folder / "given.py"]
        for block in self.blocks("python"):
            paths.append(folder / f"{Path(self.page).stem}-{block.line}.py")
            paths[-1].write_text("\n" * (block.line - 1) + self.text(block))  # errors tell the page's own line
        command = [sys.executable, "-P", "-W", "error", "-c", PROGRAM, *map(str, paths)]
        return self._run(command, folder, service)

    def _run(self, command: list[str], folder: Path, service: Service | None) -> str:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WBAR_")}
        known = {"WBAR_URL": service.url, "WBAR_API_KEY": service.key} if service else {}
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=280,
            env=clean
            | {
                "HOME": str(folder),
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "COLUMNS": "200",
                "BROWSER": "true",
            }
            | {"MPLCONFIGDIR": str(folder), "GIT_PYTHON_REFRESH": "quiet"}
            | known
            | dict(self.environment),
        )
        assert done.returncode == 0, f"{self.page}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def _inputs(service: Service, folder: Path) -> tuple[str, str]:
    """The ids of a checkpoint and a dataset that are small enough to be trained on in seconds."""
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder))
        dataset = client.datasets.create(write_archive(folder))
    return str(checkpoint.id), str(dataset.id)


def _readme(service: Service, folder: Path) -> Scenario:
    config = folder / ".config" / "wbar" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'url = "{service.url}"\napi_key = "{service.key}"\n')
    (folder / ".demo").mkdir()
    write_start(folder).rename(folder / ".demo" / "start-digits-all-0.safetensors")  # what `make demo` leaves
    return Scenario("README.md", {"http://127.0.0.1:8000": service.url})


def _guide(service: Service, folder: Path) -> Scenario:
    checkpoint, dataset = _inputs(service, folder)
    write_safetensors(folder / "other.safetensors", start_state(30), {})
    (folder / "sketches.zip").write_bytes(turned_archive())
    with service.client() as client:
        sketches = client.datasets.create(folder / "sketches.zip").id
        other = client.checkpoints.create(folder / "other.safetensors").id
        first = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 1})
        second = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 2})
        jobs = [str(client.jobs.wait(job.id, 120).id) for job in (first, second)]
        (folder / "pictures.zip").write_bytes(turned_archive())
        with zipfile.ZipFile(folder / "pictures.zip") as archive:
            (folder / "picture.png").write_bytes(archive.read(archive.namelist()[0]))
        probe = client.datasets.create(folder / "pictures.zip", task="unlabelled").id
        spread = client.jobs.create(checkpoint=checkpoint, dataset=dataset, method={"cycles": 3}, swag=1)
        swag = str(client.jobs.wait(str(spread.id), 120).id)
    ids = {"ds_P": probe, "job_S": swag}
    ids |= {"ckpt_…": checkpoint, "ckpt_A": checkpoint, "ckpt_B": str(other), "ds_…": dataset, "ds_S": sketches}
    ids |= {"job_…": jobs[0], "job_A": jobs[0], "job_B": jobs[1]}
    tracking = {
        "http://127.0.0.1:5000": f"sqlite:///{folder / 'mlflow.db'}"
    }  # tests/client/test_exports.py has a server
    return Scenario("docs/guide.md", ids | tracking)


def _api(service: Service, folder: Path) -> Scenario:
    write_start(folder).rename(folder / "resnet20.pth")
    with service.http() as http:
        content = (folder / "resnet20.pth").read_bytes()
        headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content))}
        headers |= {"Content-Type": "application/offset+octet-stream"}
        upload = http.post("/v1/uploads", headers=headers, content=content).raise_for_status().headers["Location"]
    given = """
        import time
        from wbar.webhooks import WebhookEvent, signed_headers

        event = WebhookEvent.model_validate(WebhookEvent.model_config["json_schema_extra"]["example"])
        body = event.model_dump_json().encode()
        headers = signed_headers(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], "msg_1", int(time.time()), body)
    """
    replaced = {
        "upload_0mk3q8v6zr5d2a7x9c4t": upload.rsplit("/", 1)[1],
        "architecture=resnet50": "architecture=resnet20",
    }
    return Scenario("docs/api.md", replaced | {"whsec_…": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, given)


def _averaging(_service: Service, folder: Path) -> Scenario:
    for name in ("a.safetensors", "b.safetensors"):
        write_start(folder).rename(folder / name)
    torch.save(start_state(), folder / "c.pth")
    given = """
        import torch
        from torch import nn
        from wbar_averaging import add_folded_pull_gradient, fold_pull

        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        epochs, loader = 3, [torch.rand(8, 3) for _ in range(4)]
        pulled = nn.Linear(3, 4)
        optimizer = torch.optim.SGD(pulled.parameters(), 0.1, weight_decay=1e-4)
        scaler, λ = torch.amp.GradScaler("cpu", enabled=False), 1e-3
        parameters = list(pulled.parameters())
        anchor = [parameter.detach().clone() for parameter in parameters]
        loss = pulled(loader[0]).square().mean()

        def train_one_epoch(model):
            with torch.no_grad():
                model[0].weight.add_(0.1)
    """
    options = "[--weights 1,2,1] [--dtype BF16] [--max-shard-size 5GB]"  # in brackets: they may be left out
    return Scenario("docs/averaging.md", {options: options.replace("[", "").replace("]", "")}, given)


def _operations(_service: Service, folder: Path) -> Scenario:
    up = Up(folder)
    up.start("--data", str(folder / ".local" / "share" / "wbar"))
    try:
        wait_until(lambda: up.said("workers ready"), 60, "readiness")
    finally:
        up.stop()
    return Scenario("docs/operations.md", {"/backup/today": str(folder / "backup")})


def _checkpoint(_service: Service, folder: Path) -> Scenario:
    write_start(folder).rename(folder / "start.safetensors")
    with zipfile.ZipFile(write_archive(folder)) as archive:
        archive.extractall(folder / "photos")
    given = """
        from wbar.spec import Network
        from wbar_training.networks.architectures import initialized

        model = initialized(Network("resnet20", 10))
    """
    return Scenario("docs/tutorials/checkpoint.md", given=given)


def _team(service: Service, _folder: Path) -> Scenario:
    token = {"METRICS_TOKEN": service.environment["WBAR_METRICS_TOKEN"]}
    return Scenario("docs/tutorials/team.md", {"https://hooks.example.com": "http://127.0.0.1:9"}, environment=token)


def _own_loop(_service: Service, _folder: Path) -> Scenario:
    return Scenario("docs/tutorials/averaging.md")


def _own_network(_service: Service, _folder: Path) -> Scenario:
    given = """
        from torch import nn

        stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        model = nn.Sequential(stem, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10))
    """
    return Scenario("docs/tutorials/own_network.md", given=given)


# Every page with shell or Python blocks that are run, and what makes its scenario in a folder.
SCENARIOS: dict[str, Callable[[Service, Path], Scenario]] = {
    "README.md": _readme,
    "docs/api.md": _api,
    "docs/averaging.md": _averaging,
    "docs/guide.md": _guide,
    "docs/operations.md": _operations,
    "docs/tutorials/averaging.md": _own_loop,
    "docs/tutorials/checkpoint.md": _checkpoint,
    "docs/tutorials/own_network.md": _own_network,
    "docs/tutorials/team.md": _team,
}
