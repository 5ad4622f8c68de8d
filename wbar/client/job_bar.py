"""The bar of `client.jobs.wait`: in a terminal by rich, in a notebook the job itself, redrawn in its cell."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wbar.jobs import Job

Show = Callable[[Job], None]


@contextmanager
def job_bar(progress: bool | None) -> Iterator[Show]:
    """Yield what shows a job as it is now. progress: whether to; None: in a notebook only."""
    notebook = in_notebook()
    if progress is False or (progress is None and not notebook):
        yield lambda _job: None
    elif notebook:
        yield _cell()
    else:
        # Loaded here: whoever waits without a bar needs no rich.
        from rich.console import Console

        from wbar.display import JobProgress

        with JobProgress(Console(stderr=True)) as bar:
            yield bar.show


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel, which shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _cell() -> Show:
    from IPython.display import display

    handle = None

    def show(job: Job) -> None:
        nonlocal handle
        if handle is None:
            handle = display(job, display_id=True)  # type: ignore[no-untyped-call]
        else:
            handle.update(job)

    return show
