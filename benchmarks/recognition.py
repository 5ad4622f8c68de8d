"""What recognising a large checkpoint costs beyond reading it: a ViT-B/16 of 346 MB, from the 202 of its upload until `ready`.

Each repetition sends other weights, so that nothing is recognised by its digest. The peer reads the same file once, tensor
by tensor, and looks whether all of it is finite, which is the least that whoever trusts a checkpoint has to do.
"""

import tempfile
import time
from pathlib import Path

import httpx
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.running import Service, running
from benchmarks.table import Findings, Row, Sample, figure
from wbar.spec import Network
from wbar_averaging import write_safetensors
from wbar_training.networks.architectures import initialized

NETWORK = Network("vit_b_16", num_classes=1000)
GOAL = 1.0  # seconds


def measure(quick: bool) -> Findings:
    repetitions = 2 if quick else 7
    state = dict(initialized(NETWORK).state_dict())
    ready: dict[str, list[float]] = {".safetensors": [], ".pth": []}
    reading: dict[str, list[float]] = {suffix: [] for suffix in ready}
    with running() as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        for _ in range(1 + repetitions):  # the first loads what recognition needs
            for suffix in ready:
                path = Path(folder) / f"vit{suffix}"
                state["heads.head.bias"] = torch.full((NETWORK.num_classes,), float(len(ready[suffix])))
                _write(path, state)
                ready[suffix].append(_until_ready(service, path))
                reading[suffix].append(_read(path))
    rows = [_row(suffix, ready[suffix][1:], reading[suffix][1:]) for suffix in ready]
    first = ready[".safetensors"][0]
    return Findings(rows, [f"the first upload after the start took {figure(first)} s until `ready`"])


def _row(suffix: str, ready: list[float], reading: list[float]) -> Row:
    beyond = Sample([ours - theirs for ours, theirs in zip(ready, reading, strict=True)])
    found, peer = Sample(ready), Sample(reading)
    return Row(
        f"a checkpoint of 346 MB, {suffix}: from the upload's answer until it is `ready`",
        f"{found}; beyond reading: {figure(beyond.median)} s",
        f"reading the file, all finite? {peer}",
        f"{found.median / peer.median:.2f}",
        f"≤ {GOAL:g} s beyond reading",
        beyond.median <= GOAL,
    )


def _write(path: Path, state: dict[str, Tensor]) -> None:
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        write_safetensors(path, state, {})


def _until_ready(service: Service, path: Path) -> float:
    """Upload the file with one request, whose answer comes as its row is made; return the seconds until it is `ready`."""
    headers = {"Authorization": f"Bearer {service.api_key}", "Content-Type": "application/octet-stream"}
    with open(path, "rb") as content:
        answer = httpx.post(f"{service.url}/v1/checkpoints", content=content, headers=headers, timeout=300)
    began = time.perf_counter()
    checkpoint = service.client.checkpoints.get(answer.raise_for_status().json()["id"])
    while checkpoint.status == "processing":
        time.sleep(0.01)
        checkpoint = service.client.checkpoints.get(checkpoint.id)
    if checkpoint.status != "ready":
        raise RuntimeError(f"{path} was not recognised: {checkpoint.error}")
    return time.perf_counter() - began


def _read(path: Path) -> float:
    began = time.perf_counter()
    state = torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise RuntimeError(f"{name} is not finite")
    return time.perf_counter() - began
