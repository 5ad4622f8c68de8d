"""A job in a notebook: its HTML, and the cell that `wait` redraws in a real kernel."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import Service
from tests.material import write_archive, write_start
from wbar.checkpoints import Fault
from wbar.jobs import Job

METHOD = {"cycles": 1, "high": {"lr": 0.02}, "low": {"lr": 0.002}}


def test_a_job_is_shown_with_its_bar_and_no_foreign_markup() -> None:
    example = Job.model_validate(Job.model_config["json_schema_extra"]["example"])  # type: ignore[index, call-overload]
    running = example.model_copy(update={"name": "<script>"})._repr_html_()
    assert '<progress max="1" value="0.1800"></progress> 18% cycle 2/6, high, about 4 s left' in running
    assert "&lt;script&gt;" in running
    assert "<script>" not in running
    failed = example.model_copy(update={"status": "failed", "error": Fault(code="diverged", message="a < b")})
    assert "diverged: a &lt; b" in failed._repr_html_()


@pytest.mark.long
def test_wait_redraws_one_cell(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with service.client() as client:
        checkpoint, dataset = (
            client.checkpoints.create(write_start(tmp_path)),
            client.datasets.create(write_archive(tmp_path)),
        )
        job = client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method=METHOD)
    code = f"from wbar import Client\njob = Client({service.url!r}, {service.key!r}).jobs.wait({job.id!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("job")])
    # The kernel's Python is this one, whatever kernels are installed.
    monkeypatch.setenv("JUPYTER_PATH", "/nowhere")
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    NotebookClient(notebook, timeout=120).execute()
    waited, shown = (cell.outputs for cell in notebook.cells)
    assert [output.output_type for output in waited] == ["display_data"]  # one, that was updated
    for output in (waited[0], shown[0]):
        assert "averaged weights w̄" in output.data["text/html"]
        assert "succeeded" in output.data["text/html"]
