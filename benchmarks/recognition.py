"""What recognising a large checkpoint costs beyond reading it: a ViT-B/16 of 346 MB, from the 202 of its upload until `ready`.

Each repetition sends other weights, so that nothing is recognised by its digest. The peer reads the same file once, tensor
by tensor, and looks whether all of it is finite, which is the least that whoever trusts a checkpoint has to do.
"""

import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

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
    ready, reading = list[float](), list[float]()
    with running() as service, tempfile.TemporaryDirectory(prefix="wbar-bench-") as folder:
        path = Path(folder) / "vit.safetensors"
        for repetition in range(1 + repetitions):  # the first loads what recognition needs
            state["heads.head.bias"] = torch.full((NETWORK.num_classes,), float(repetition))
            write_safetensors(path, state, {})
            ready.append(_until_ready(service, path))
            reading.append(_read(path))
    beyond = Sample([ours - theirs for ours, theirs in zip(ready[1:], reading[1:], strict=True)])
    found, peer = Sample(ready[1:]), Sample(reading[1:])
    row = Row(
        f"a checkpoint of {path.name}, 346 MB: from the upload's answer until it is `ready`",
        f"{found}; beyond reading: {figure(beyond.median)} s",
        f"reading the file, all finite? {peer}",
        f"{found.median / peer.median:.2f}",
        f"≤ {GOAL:g} s beyond reading",
        beyond.median <= GOAL,
    )
    return Findings([row], [f"the first upload after the start took {figure(ready[0])} s until `ready`"])


def _until_ready(service: Service, path: Path) -> float:
    checkpoint = service.client.checkpoints.create(path, wait=False)
    began = time.perf_counter()
    while checkpoint.status == "processing":
        time.sleep(0.01)
        checkpoint = service.client.checkpoints.get(checkpoint.id)
    if checkpoint.status != "ready":
        raise RuntimeError(f"{path} was not recognised: {checkpoint.error}")
    return time.perf_counter() - began


def _read(path: Path) -> float:
    began = time.perf_counter()
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  # a handle, no dict
            if not bool(torch.isfinite(file.get_tensor(name)).all()):
                raise RuntimeError(f"{name} is not finite")
    return time.perf_counter() - began
