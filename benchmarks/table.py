"""One row says what was measured, beside what, and whether the goal is met; rows are shown to people and kept as Markdown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

COLUMNS = ("what", "measured", "limit or peer", "ratio", "goal", "")


@dataclass(frozen=True)
class Sample:
    """Repeated measurements of one quantity, shown as median, range and count. All ratios are ratios of medians."""

    values: Sequence[float]
    unit: str = "s"

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        text = f"{figure(self.median)} {self.unit}"
        return text if len(self.values) == 1 else f"{text} ({figure(low)}–{figure(high)}, n = {len(self.values)})"


@dataclass(frozen=True)
class Row:
    """One line of the table. met: None where nothing was promised."""

    what: str
    measured: str
    peer: str
    ratio: str
    goal: str = "–"
    met: bool | None = None

    @property
    def verdict(self) -> str:
        return "" if self.met is None else "met" if self.met else "MISSED"

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.what, self.measured, self.peer, self.ratio, self.goal, self.verdict)


@dataclass
class Findings:
    """What one measure found: its rows, and remarks that explain them."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def show(console: Console, title: str, findings: Findings) -> None:
    table = Table(title=title, title_justify="left", show_lines=True)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for row in findings.rows:
        style = {None: "", True: "green", False: "bold red"}[row.met]
        table.add_row(*(Text(cell) for cell in row.cells[:-1]), Text(row.verdict, style))
    console.print(table)
    for note in findings.notes:
        console.print(f"- {note}", markup=False)


def markdown(title: str, findings: Findings) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    lines = [line(COLUMNS), line(["---"] * len(COLUMNS)), *(line(row.cells) for row in findings.rows)]
    notes = [f"- {note}" for note in findings.notes]
    return "\n".join([title, "", *lines, "", *notes]).rstrip() + "\n"
