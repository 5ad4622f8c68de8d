"""The notebook is its tutorial, executed: the same cells, and the numbers that come out here."""

import re

import nbformat
import pytest

from tests.docs.notebook import NOTEBOOK, build, execute, printed


def losses(text: str) -> list[float]:
    return [float(found) for found in re.findall(r": (\d+\.\d+)", text)]


def test_the_notebook_is_made_of_the_tutorial() -> None:
    kept, made = nbformat.read(NOTEBOOK, as_version=4), build()
    assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
        (one.cell_type, one.source) for one in made.cells
    ], "make it anew: python -m tests.docs.notebook"
    assert len(losses(printed(kept))) == 4


@pytest.mark.long
def test_the_notebook_runs_and_says_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", "/nowhere")  # and so it is as before afterwards
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    here, kept = losses(execute(build())), losses(printed(nbformat.read(NOTEBOOK, as_version=4)))
    assert here == pytest.approx(kept, abs=0.08), "another processor rounds otherwise, but not by so much"
    for _start, last, stale, mean in (here, kept):
        assert mean < last
        assert mean < stale
