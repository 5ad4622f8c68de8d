"""Failures that torch raises as errors of its own, as errors of a job, which say what to do about them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wbar.errors import CompileFailed, OutOfMemory

# torch's allocator of the CPU has no class of error of its own.
NO_MEMORY = "DefaultCPUAllocator: "
# The driver's and the libraries' own words, where others fill the card beside torch's allocator.
NO_DEVICE_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
SMALLER = "lower recipe.batch_size or image_size"


@contextmanager
def as_job_errors() -> Iterator[None]:
    """Raise OutOfMemory and CompileFailed for what torch raises inside in their place; every other error as it is."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"the device ran out of memory ({_first_line(error, 1000)}): {SMALLER}") from error
    except MemoryError as error:
        raise OutOfMemory(f"this machine ran out of memory: {SMALLER}") from error
    except RuntimeError as error:
        if any(words in str(error) for words in NO_DEVICE_MEMORY):
            raise OutOfMemory(f"the device ran out of memory ({_first_line(error)}): {SMALLER}") from error
        if NO_MEMORY in str(error):
            raise OutOfMemory(f"this machine ran out of memory ({_first_line(error)}): {SMALLER}") from error
        # By name: torch._dynamo takes seconds to import, and only jobs that compile have it.
        if "TorchDynamoException" not in {kind.__name__ for kind in type(error).__mro__}:
            raise
        raise CompileFailed(
            f"torch.compile failed ({_first_line(error)}): is there a C++ compiler (CPU) or Triton (GPU) on the worker? "
            "Or leave recipe.compile out"
        ) from error


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error of Python or torch says that memory is missing."""
    words = (NO_MEMORY, *NO_DEVICE_MEMORY)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in words)


def _first_line(error: BaseException, most: int = 200) -> str:
    """Return the first line of an error's message. most: characters of it; torch's words about a device are one long line."""
    return (str(error).splitlines() or [""])[0][:most]
