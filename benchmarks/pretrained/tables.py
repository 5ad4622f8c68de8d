"""The tables: per task the arms with their errors, paired by seed with the control, and what follows for the goal.

± of a value is the standard deviation over the seeds; of a difference to the control, the standard error of its mean. The
mean accuracy under shift is over the four shifts.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

from benchmarks.pretrained.arms import ORDER, SINGLE
from benchmarks.pretrained.images import SHIFTS

Line = dict[str, Any]  # of the results file, as JSON has it
GOAL = "auto + α"
POINT = 0.01
HEAD = ("accuracy %", "NLL", "ECE", "shifted accuracy %", *SHIFTS, "Δ NLL to control", "Δ shifted accuracy to control")


def shifted(line: Line) -> float:
    """Return the mean accuracy over the shifts."""
    return mean(line["shifts"][name]["accuracy"] for name in SHIFTS)


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the lines of a markdown page."""
    for bench in dict.fromkeys(map(_bench, lines)):
        own = [line for line in lines if _bench(line) == bench]
        name, size, batch_norm, device, precision, images = bench
        what = f"{name}, {size} px, BatchNorm {batch_norm}, {device}, {precision}, {images} unseen images"
        by_arm = {arm: {line["seed"]: line for line in own if line["arm"] == arm} for arm in ORDER}
        there = {arm: found for arm, found in by_arm.items() if found}
        seeds = sorted(set.intersection(*(set(found) for found in there.values())))
        if not seeds:
            yield f"\n### {what}: no seed has all arms yet\n"
            continue
        rows = {arm: [found[seed] for seed in seeds] for arm, found in there.items()}
        yield f"\n### {what}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}\n"
        yield f"| arm | {' | '.join(HEAD)} |"
        yield "|---" * (len(HEAD) + 1) + "|"
        for arm, found in rows.items():
            yield f"| {arm} | {' | '.join(_cells(found, rows.get('control', []), arm))} |"
        yield ""
        yield from _goal(rows)
        if GOAL in rows:
            chosen = ", ".join(f"{line['alpha']:g}" for line in rows[GOAL])
            yield f"α by seed: {chosen}."


def _bench(line: Line) -> tuple[str, int, str, str, str, int]:
    device, precision, images = line.get("device", ""), line.get("precision", ""), line.get("images", 0)  # older lines
    return line["task"], line["size"], line["batch_norm"], device, precision, images


def _cells(rows: Sequence[Line], control: Sequence[Line], arm: str) -> Iterator[str]:
    yield _spread([100 * row["accuracy"] for row in rows], 2)
    yield _spread([row["loss"] for row in rows], 4)
    yield _spread([row["ece"] for row in rows], 4)
    yield _spread([100 * shifted(row) for row in rows], 2)
    for name in SHIFTS:
        yield f"{100 * mean(row['shifts'][name]['accuracy'] for row in rows):.2f}"
    if arm == "control" or not control:
        yield from ("–", "–")
        return
    pairs = list(zip(rows, control, strict=True))
    yield _difference([a["loss"] - b["loss"] for a, b in pairs], 4)
    yield _difference([100 * (shifted(a) - shifted(b)) for a, b in pairs], 2)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def _difference(values: Sequence[float], digits: int) -> str:
    error = f" ± {stdev(values) / sqrt(len(values)):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):+.{digits}f}{error}"


def _goal(rows: dict[str, list[Line]]) -> Iterator[str]:
    """Say whether `auto` with a chosen α has the lowest NLL of single networks, and a point over the control under shift."""
    if GOAL not in rows or "control" not in rows:
        return
    own = [line["loss"] for line in rows[GOAL]]  # where every α is 1, those of `auto`, too: it is no other arm then
    others = [arm for arm, found in rows.items() if arm in SINGLE and [line["loss"] for line in found] != own]
    best = min(others, key=lambda arm: mean(line["loss"] for line in rows[arm]))
    behind = [a["loss"] - b["loss"] for a, b in zip(rows[GOAL], rows[best], strict=True)]
    ahead = [shifted(a) - shifted(b) for a, b in zip(rows[GOAL], rows["control"], strict=True)]
    met = "met" if mean(behind) < 0 else "missed"
    yield f"Lowest NLL of all single networks: **{met}**, {_difference(behind, 4)} to {best}."
    met = "met" if mean(ahead) >= POINT else "missed"
    yield f"Mean accuracy under shift a point over the control: **{met}**, {_difference([100 * x for x in ahead], 2)} points."
