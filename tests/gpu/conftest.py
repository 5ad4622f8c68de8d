"""The device of these tests: a GPU, or what WBAR_GPU_TESTS_DEVICE names, so that the tests themselves can be tried anywhere.

Where torch sees no GPU every test here is skipped with the reason. With WBAR_GPU_TESTS_DEVICE=cpu they run on the CPU, and
those that need CUDA's own counters, kernels or driver are skipped one by one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.conftest import Broker, Service, fresh_database

# cuBLAS repeats its bits only with it, and torch looks for it once a process, at the first product on a GPU. What is started
# by these tests sets it by itself.
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
os.environ.setdefault(CUBLAS, ":4096:8")

DEVICE = os.environ.get("WBAR_GPU_TESTS_DEVICE", "cuda")
HERE = Path(__file__).parent
# Said once a process by torch and its libraries; nothing is wrong.
HARMLESS = (
    "ignore:Attempting to run cuBLAS, but there was no current CUDA context",
    "ignore:Plan failed with",
    "ignore:Please use the new API settings to control TF32",
    "ignore:.*does not have a deterministic implementation",
    "ignore:Deterministic behavior was enabled",
    "ignore:Memory Efficient attention defaults",
    "ignore:.*PYTORCH_CUDA_ALLOC_CONF is deprecated",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if item.path.is_relative_to(HERE)]
    missing = bool(own) and DEVICE.startswith("cuda") and not torch.cuda.is_available()
    for item in own:
        for harmless in HARMLESS:
            item.add_marker(pytest.mark.filterwarnings(harmless))
        if missing:
            item.add_marker(pytest.mark.skip(reason="needs a GPU: torch sees none"))


@pytest.fixture
def device() -> str:
    return DEVICE


@pytest.fixture
def cuda(device: str) -> torch.device:
    """For tests that ask CUDA itself."""
    if not device.startswith("cuda"):
        pytest.skip("asks CUDA itself, and runs on another device")
    return torch.device(device)


@pytest.fixture
def exact() -> None:
    """Convolutions and products in float32, not in tf32, as in a job of the precision float32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    """Jobs that run in the process of the tests choose kernels and threads for the whole process."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
    torch.set_num_threads(threads)


@contextmanager
def running_service(folder: Path, **environment: str) -> Iterator[Service]:
    """A whole service of one test's own, whose worker trains on the device."""
    with fresh_database("sqlite", folder) as url:
        broker = Broker()
        broker.start()
        service = Service(folder, url, broker, WBAR_DEVICE=DEVICE, **environment)
        service.environment.pop(CUBLAS)
        try:
            service.start()
            yield service
        finally:
            service.stop()
            broker.kill()
