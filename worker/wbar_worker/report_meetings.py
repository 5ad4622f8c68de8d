"""The part of a report about replicas that met on their way: how far they had gone from each other before each meeting."""

from collections.abc import Iterator, Sequence

from wbar.results import MeetingResult


def sections(meetings: Sequence[MeetingResult]) -> Iterator[str]:
    """Yield the heading, the table, and what its columns are."""
    yield "<h2>How far the replicas were from each other</h2>"
    rows = "".join(
        f"<tr><td>after snapshot {one.n}</td><td>{one.spread:.4g}</td><td>{one.norm:.4g}</td>"
        f"<td>{_share(one)}</td></tr>"
        for one in meetings
    )
    head = "<tr><th>meeting</th><th>mean distance to w̄</th><th>‖w̄‖</th><th>share</th></tr>"
    yield f"<div class='wide'><table>{head}{rows}</table></div>"
    yield (
        "<p class='note'>Before each meeting: the mean over the replicas of ‖w<sub>i</sub> − w̄‖, w̄ the mean of their weights, "
        "all parameters together. Then each goes on from w̄, or nearer to it (method.join_keep).</p>"
    )


def _share(one: MeetingResult) -> str:
    return f"{one.spread / one.norm:.2%}" if one.norm else "–"
