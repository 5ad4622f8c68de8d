"""The report of a job marks what a download gives, and tells what was asked for from what it became."""

import re
from pathlib import Path

import pytest

from tests.store.rows import result, spec
from wbar.method import CyclicSwa
from wbar.results import CurvePoint, Selection
from wbar_worker.report import ReportPage


@pytest.mark.parametrize(("delivered", "row"), [("start", "start"), ("averaged", "averaged weights w̄")])
def test_what_is_bold_is_what_is_downloaded(tmp_path: Path, delivered: str, row: str) -> None:
    ended = result().model_copy(
        update={
            "selection": Selection.model_validate({"delivered": delivered}),
            "curve": [CurvePoint(n=1, accuracy=1.0, loss=0.1)],
        }
    )
    request = {"checkpoint": "ckpt_1", "dataset": "ds_1", "name": "<b>", "method": {"cycles": 77}}
    page = ReportPage("job_1", "<b>", spec(method=CyclicSwa(cycles=77)), ended, [], request)
    page.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert re.findall(r"<tr class=delivered><td>(.+?) <span class=tag>download</span>", text) == [row]
    asked = text.partition("<h2>What was asked for</h2>")[2].partition("<h2>What it became")[0]
    assert "&quot;cycles&quot;: 77" in asked
    assert "momentum" not in asked
    assert "momentum" in text.partition("<h2>What it became")[2]
