"""`python -m tests.docs.notebook`: the notebook that is made of docs/tutorials/averaging.md, executed and written beside it."""

import os
import re

import nbformat
from nbclient import NotebookClient

from tests.docs.pages import ROOT

PAGE = ROOT / "docs" / "tutorials" / "averaging.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")


def build() -> nbformat.NotebookNode:
    """Return the page as a notebook that was not executed: its text as Markdown cells, its Python blocks as code cells."""
    text = PAGE.read_text().replace("; the [notebook](averaging.ipynb) is the same with its output", "")
    cells = []
    for at, part in enumerate(re.split(r"^```python\n(.*?)^```\n", text, flags=re.MULTILINE | re.DOTALL)):
        make = nbformat.v4.new_code_cell if at % 2 else nbformat.v4.new_markdown_cell
        cells.append(make(part.strip(), id=f"part-{at}"))
    return nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def execute(notebook: nbformat.NotebookNode) -> str:
    """Execute the notebook in place, in a kernel of this Python, and return what its cells printed."""
    os.environ.update(JUPYTER_PATH="/nowhere", PYDEVD_DISABLE_FILE_VALIDATION="1")
    NotebookClient(notebook, timeout=250, record_timing=False).execute()
    return printed(notebook)


def printed(notebook: nbformat.NotebookNode) -> str:
    """What the cells of an executed notebook printed; anything but text on stdout is an AssertionError."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert all(output.output_type == "stream" and output.name == "stdout" for output in outputs), outputs
    return "".join(output.text for output in outputs)


if __name__ == "__main__":
    made = build()
    execute(made)
    made.metadata = {"language_info": {"name": "python"}}
    nbformat.write(made, NOTEBOOK)
