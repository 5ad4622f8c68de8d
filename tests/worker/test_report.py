"""The report of a job marks what a download gives, and tells what was asked for from what it became."""

import math
import re
from pathlib import Path

import pytest

from tests.store.rows import result, spec
from wbar.choices import AlphaLine, AlphaPoint, Selection, SetPoint
from wbar.flatness_results import EpochPoint
from wbar.loss_surface import Histogram, LossSurface
from wbar.method import CyclicSwa
from wbar.results import CurvePoint, MeetingResult
from wbar_worker.report import ReportPage
from wbar_worker.report_surface import figures_of, histograms_of


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


def test_the_whole_line_is_in_the_report(tmp_path: Path) -> None:
    points = [
        AlphaPoint(
            alpha=alpha, accuracy=0.5 + alpha / 4, loss=1.5 - alpha, selection_loss=None if alpha == 0.5 else 1.25,
            evaluation={"sketch": SetPoint(accuracy=0.25, loss=3.125)},
        )
        for alpha in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    line = AlphaLine(chosen=0.5, by="selection", points=points)
    ended = result().model_copy(update={"interpolation": line, "curve": [CurvePoint(n=1, accuracy=1.0, loss=0.1)]})
    ReportPage("job_1", None, spec(), ended, []).write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    section = text.partition("<h2>From the start to w̄</h2>")[2].partition("<h2>")[0]
    assert "<tr><td>0</td><td>50.00%</td><td>1.5000</td><td>1.2500</td></tr>" in section
    assert "<tr class=delivered><td>0.5</td><td>62.50%</td><td>1.0000</td><td>–</td></tr>" in section
    assert "<tr><td>1</td><td>75.00%</td><td>0.5000</td><td>1.2500</td></tr>" in section
    assert "sketch" in section
    assert "3.125" in section


def test_replicas_that_met_are_shown_with_their_distances(tmp_path: Path) -> None:
    met = [MeetingResult(n=2, spread=0.5, norm=20.0), MeetingResult(n=4, spread=0.25, norm=0.0)]
    ended = result().model_copy(update={"meetings": met, "curve": [CurvePoint(n=1, accuracy=1.0, loss=0.1)]})
    ReportPage("job_1", None, spec(), ended, []).write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<td>after snapshot 2</td><td>0.5</td><td>20</td><td>2.50%</td>" in text
    assert "<td>after snapshot 4</td><td>0.25</td><td>0</td><td>–</td>" in text


def test_surfaces_share_a_colour_scale_and_histograms_are_drawn(tmp_path: Path) -> None:
    rows = {"start": [[1.0, None, 4.0]] * 3, "averaged": [[0.1, 0.2, 0.4]] * 3}
    surface = LossSurface(
        positions=[-1, 0, 1], train_images=8, val_images=8, train_loss=rows, val_loss={"averaged": rows["averaged"]}
    )
    train, other, held_out = (figure.to_dict()["data"][0] for figure in figures_of(surface, "loss (nats)"))
    assert (train["zmin"], train["zmax"]) == (other["zmin"], other["zmax"]) == (-1, pytest.approx(math.log10(4)))
    assert held_out["zmax"] == pytest.approx(math.log10(0.4))
    epochs = [
        EpochPoint(epoch=n, distance=1, distance_from_start=1, update_norms=None, update_histogram=histogram)
        for n, histogram in (
            (1, Histogram(first=-8, counts=[3, 1])),
            (2, Histogram(first=-7, counts=[0, 2])),
            (3, None),
        )
    ]
    (figure,) = histograms_of(epochs)
    drawn = figure.to_dict()["data"][0]
    assert list(map(list, drawn["customdata"])) == [[3, 1, 0], [0, 0, 2]]
    assert list(histograms_of(epochs[2:])) == []
