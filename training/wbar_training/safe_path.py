"""Python that training starts does not look for modules in the current folder: DataLoader workers, ranks, torch's compiler.

Python puts the current folder first on the path of `python -c` and `python -m`, which is how multiprocessing and torch start
their processes. `-P` is handed on by multiprocessing only, so what is started below a user's own script has to be told.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "PYTHONSAFEPATH"


@contextmanager
def for_children() -> Iterator[None]:
    """Start processes with a safe path until the end of the block, or of the function that it decorates."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
