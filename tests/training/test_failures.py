"""What torch raises is a job's error, which says what to do about it; every other error passes as it is."""

import pytest
import torch

from wbar.errors import JobError, OutOfMemory
from wbar_training.failures import as_job_errors

LONG = "CUDA out of memory. Tried to allocate 20.00 GiB. " + "Of the allocated memory much is reserved. " * 12
UNKNOWN = RuntimeError("shapes (2, 3) and (4, 5) cannot be multiplied")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError(LONG), f"the device ran out of memory ({LONG.splitlines()[0]})"),
        (torch.OutOfMemoryError(), "the device ran out of memory ()"),
        (RuntimeError("CUDA error: out of memory\nmore"), "the device ran out of memory (CUDA error: out of memory)"),
        (
            RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when"),
            "the device ran out of memory (CUBLAS_STATUS_ALLOC_FAILED when)",
        ),
        (MemoryError(), "this machine ran out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate"),
            "this machine ran out of memory ([enforce fail]",
        ),
    ],
)
def test_memory_that_is_missing(error: BaseException, says: str) -> None:
    with pytest.raises(OutOfMemory) as raised, as_job_errors():
        raise error
    assert raised.value.detail.startswith(says)
    assert raised.value.detail.endswith("lower recipe.batch_size or image_size")
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [UNKNOWN, OutOfMemory("said already"), KeyboardInterrupt()])
def test_every_other_error_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, as_job_errors():
        raise error
    assert raised.value is error


def test_a_real_allocation_that_is_too_large_for_the_machine() -> None:
    with pytest.raises(JobError, match=r"this machine ran out of memory .* lower recipe\.batch_size"), as_job_errors():
        torch.empty(1 << 60, dtype=torch.uint8)
