"""The page of a run: what every part found, as Markdown."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import tables
from benchmarks.gpu.lines import read

Line = dict[str, Any]


GAIN_PAGE = "gain-full.md"  # beside the lines of the part `gain`


def write_page(results: Path, page: Path) -> None:
    """Write the page of all results so far."""
    lines = read(results)
    latest = {(line["part"], line["name"]): line for line in lines if "part" in line}  # a later line replaces
    page.write_text("\n".join(_page(list(latest.values()), results.parent)) + "\n")


def _page(lines: list[Line], folder: Path) -> Iterator[str]:
    machine = next((line for line in lines if line["part"] == "machine"), {})
    yield f"{machine.get('device', 'no GPU')}, torch {machine.get('torch')}, Python {machine.get('python')}."
    for part, (title, table) in SECTIONS.items():
        own = [line for line in lines if line["part"] == part]
        if own:
            yield f"\n## {title}\n\n{table(own)}"
    gain = folder / GAIN_PAGE
    if gain.exists():
        yield f"\n## Gain at full size\n\n{gain.read_text()}"


def _tests(lines: list[Line]) -> str:
    counts = Counter(line["outcome"] for line in lines)
    said = [", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) + "."]
    for line in lines:
        if line["outcome"] != "passed":
            last = (line.get("why") or "").strip().splitlines() or [""]
            said.append(f"- {line['outcome']}: `{line['name']}`: {last[-1][:300]}")
    return "\n".join(said)


# By part, in the order of the page: its title, and how its lines are shown.
SECTIONS: dict[str, tuple[str, Callable[[list[Line]], str]]] = {
    "tests": ("Tests", _tests),
    "speed": ("Speed", tables.speed),
    "bandwidth": ("Averaging over the memory's bandwidth", tables.bandwidth),
    "trace": ("One step, profiled", tables.waits),
    "first_step": ("Submit to first step", tables.first_step),
}
