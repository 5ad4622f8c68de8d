"""The memory of GPUs as the driver says it. Where there is no GPU, a library of the driver's interface stands in for it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } Memory2;
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)(size_t)(index + 1); return 0; }
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) { strcpy(uuid, "GPU-0"); uuid[4] += (size_t)device; return 0; }
int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
  memory->total = 80; memory->used = 10 * (size_t)device; memory->free = 80 - memory->used; return 0; }
"""
READ = """
import json
from dataclasses import asdict
from wbar_worker.gpus import Gpus
print(json.dumps([asdict(gpu) for gpu in Gpus().memory()]))
"""


def read(**environment: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_every_gpu_of_the_host_is_read(tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(DRIVER)
    library = ["cc", "-shared", "-fPIC", "-w", "-o", str(tmp_path / "libnvidia-ml.so.1"), str(tmp_path / "driver.c")]
    subprocess.run(library, check=True)
    assert read(LD_LIBRARY_PATH=str(tmp_path)) == [
        {"uuid": "GPU-1", "used": 10, "total": 80},
        {"uuid": "GPU-2", "used": 20, "total": 80},
    ]


def test_without_a_driver_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")  # found before the machine's own, if it has one
    assert read(LD_LIBRARY_PATH=str(tmp_path)) == []
