"""The tables: per block the arms beside `auto`, paired by seed, and what follows for the goal, losses first."""

import json
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.gain.arms import ORDER, SINGLE
from benchmarks.gain.blocks import Block

Line = dict[str, Any]  # of the results file, as JSON has it
MEASURES = {"accuracy": (100.0, 2), "loss": (1.0, 4), "nll_calibrated": (1.0, 4), "ece": (1.0, 4)}
HEAD = ("accuracy %", "NLL", "NLL calibrated", "ECE", "Δ accuracy to `auto`", "Δ NLL to `auto`", "Δ calibrated")


def read(results: Path) -> list[Line]:
    """Return the lines of a results file; none where it does not exist."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def tables(lines: Sequence[Line], blocks: Sequence[Block]) -> Iterator[str]:
    """Yield the lines of a markdown page."""
    done = [(block, found) for block in blocks if (found := complete(lines, block))]
    yield from _goal(done)
    for block, found in done:
        yield f"\n### {block.name}, {len(found['auto'])} seeds\n"
        yield f"| arm | {' | '.join(HEAD)} |"
        yield "|---" * (len(HEAD) + 1) + "|"
        for arm in ORDER:
            label = f"**{arm}**" if arm == "auto" else arm
            yield f"| {label} | {' | '.join(_cells(found[arm], found['auto'], arm))} |"
        yield ""
        yield _chosen(found["auto"])


def complete(lines: Sequence[Line], block: Block) -> dict[str, list[Line]] | None:
    """Return every arm's lines in the order of the seeds that have all arms; None where there is none."""
    own = [line for line in lines if line["block"] == block.name]
    by_arm = {arm: {line["seed"]: line for line in own if line["arm"] == arm} for arm in ORDER}
    seeds = sorted(seed for seed in by_arm["auto"] if all(seed in found for found in by_arm.values()))
    return {arm: [found[seed] for seed in seeds] for arm, found in by_arm.items()} if seeds else None


def _cells(rows: list[Line], auto: list[Line], arm: str) -> Iterator[str]:
    for name, (scale, digits) in MEASURES.items():
        values = [scale * row[name] for row in rows]
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        yield f"{mean(values):.{digits}f}{spread}"
    for name in ("accuracy", "loss", "nll_calibrated"):
        scale, digits = MEASURES[name]
        difference, error = paired(rows, auto, name)
        yield "–" if arm == "auto" else f"{scale * difference:+.{digits}f} ± {scale * error:.{digits}f}"


def paired(rows: list[Line], others: list[Line], name: str) -> tuple[float, float]:
    """Return the mean difference, paired by seed, and its standard error; of one seed, 0."""
    differences = [row[name] - other[name] for row, other in zip(rows, others, strict=True)]
    return mean(differences), stdev(differences) / sqrt(len(differences)) if len(differences) > 1 else 0.0


def _goal(done: Sequence[tuple[Block, dict[str, list[Line]]]]) -> Iterator[str]:
    """Yield a row per block: how far `auto` is from the best single network, the worst blocks first."""
    yield "| block | NLL | accuracy | calibrated NLL | over start | over control |"
    yield "|---|---|---|---|---|---|"
    rows = []
    for block, found in done:
        verdicts = [_behind(found, name, sign) for name, sign in (("loss", 1), ("accuracy", -1), ("nll_calibrated", 1))]
        ahead = [_ahead(found, arm) for arm in ("start", "control")]
        worst = max(each[0] for each in verdicts)
        rows.append((worst, f"| {block.name} | {' | '.join(text for _, text in verdicts)} | {' | '.join(ahead)} |"))
    for _, row in sorted(rows, reverse=True):
        yield row


def _behind(found: dict[str, list[Line]], name: str, sign: int) -> tuple[float, str]:
    """Return by how many standard errors `auto` is behind the best other single network, and that in words."""
    others = [arm for arm in SINGLE if arm != "auto"]
    best = min(others, key=lambda arm: sign * mean(line[name] for line in found[arm]))
    difference, error = paired(found["auto"], found[best], name)
    behind = sign * difference
    errors = 0.0 if behind <= 0 else behind / error if error else float("inf")
    scale, digits = MEASURES[name]
    met = "**met**" if errors <= 1 else "**missed**"
    return errors, f"{met}: {scale * difference:+.{digits}f} ± {scale * error:.{digits}f} to {best}"


def _ahead(found: dict[str, list[Line]], arm: str) -> str:
    difference, error = paired(found["auto"], found[arm], "loss")
    clearly = " **clear**" if difference < -2 * error else ""
    return f"{difference:+.4f} ± {error:.4f}{clearly}"


def _chosen(rows: list[Line]) -> str:
    """Return what `auto` found and chose, seed by seed, as one line."""
    parts = []
    for row in rows:
        chosen = row.get("chosen")
        what = "the last third, assumed" if row["assumed"] else "–"
        if chosen is not None:
            what = f"{chosen['kind']} {chosen['first']}–{chosen['last']}"
            what += "" if chosen["alpha"] == 1 else f" at α = {chosen['alpha']:g}"
        start = " (start delivered)" if row["delivered"] == "start" else ""
        parts.append(f"{row['start_kind']}, rate × {row.get('rate_factor', 1):g}: {what}{start}")
    return "`auto`, by seed: " + "; ".join(parts) + "."
