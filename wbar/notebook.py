"""A job as a notebook shows it: its name, a bar, and once it has succeeded the table of the comparisons."""

from html import escape
from typing import TYPE_CHECKING

from wbar.measures import measure_of
from wbar.results import VERDICTS, Comparisons

if TYPE_CHECKING:
    from wbar.jobs import Job


def job_html(job: "Job") -> str:
    """Return a job as HTML: no script, no style sheet, every text escaped."""
    title = f"<b>{escape(job.name or job.id or 'a dry run')}</b> {escape(job.status)}"
    parts = [title]
    if job.progress is not None and job.result is None:
        at = job.progress
        place = f"cycle {at.cycle}/{at.cycles}, {at.phase}" if at.cycle else at.phase
        left = f", about {at.eta_seconds:.0f} s left" if at.eta_seconds is not None else ""
        parts.append(
            f'<progress max="1" value="{at.fraction:.4f}"></progress> {at.fraction:.0%} {escape(place + left)}'
        )
    if job.error is not None:
        parts.append(f"{escape(job.error.code)}: {escape(job.error.message)}")
    if job.result is not None:
        parts += [_table(job), escape(VERDICTS[job.result.verdict])]
    return "<div>" + "<br>".join(parts) + "</div>"


def _table(job: "Job") -> str:
    assert job.result is not None
    measure = measure_of(job.result.metrics.averaged)
    rows = "".join(
        f"<tr><td>{escape(Comparisons.label(name))}</td><td>{measure.text(score.accuracy)}</td><td>{score.loss:.4f}</td></tr>"
        for name, score in job.result.metrics.named().items()
    )
    return f"<table><tr><th></th><th>{measure.name}</th><th>{measure.loss}</th></tr>{rows}</table>"
