"""The page of a run: what every part found, as Markdown."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import read

Line = dict[str, Any]
TITLES = {
    "tests": "Tests",
    "bandwidth": "Averaging over the memory's bandwidth",
    "speed": "Speed",
    "trace": "One step, profiled",
    "first_step": "Submit to first step",
    "gain": "Gain at full size",
}


def write_page(results: Path, page: Path) -> None:
    """Write the page of all results so far."""
    lines = read(results)
    latest = {(line["part"], line["name"]): line for line in lines if "part" in line}  # a later line replaces
    page.write_text("\n".join(_page(list(latest.values()), results.parent)) + "\n")


def _page(lines: list[Line], folder: Path) -> Iterator[str]:
    machine = next((line for line in lines if line["part"] == "machine"), {})
    yield f"{machine.get('device', 'no GPU')}, torch {machine.get('torch')}, Python {machine.get('python')}."
    for part, title in TITLES.items():
        own = [line for line in lines if line["part"] == part]
        if not own:
            continue
        yield f"\n## {title}\n"
        if part == "tests":
            yield from _tests(own)
        elif part == "gain" and (folder / "gain.md").exists():
            yield (folder / "gain.md").read_text()
        else:
            yield from _figures(own)


def _tests(lines: list[Line]) -> Iterator[str]:
    counts = Counter(line["outcome"] for line in lines)
    yield ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) + "."
    for line in lines:
        if line["outcome"] != "passed":
            last = (line.get("why") or "").strip().splitlines() or [""]
            yield f"- {line['outcome']}: `{line['name']}`: {last[-1][:300]}"


def _figures(lines: list[Line]) -> Iterator[str]:
    for line in lines:
        figures = ", ".join(f"{name} {_short(value)}" for name, value in line.items() if name not in ("part", "name"))
        yield f"- `{line['name']}`: {figures}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
