"""Markdown tables of the lines that the parts print: speed, memory, waits, the first step."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

Line = dict[str, Any]
BARE_GOAL, BEST_GOAL = 0.98, 0.9
BEST = ("graph", "compiled")
ARMS = ("wbar", "wbar_compiled", "bare", "lightning", "graph", "compiled")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; a bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def speed(lines: Iterable[Line]) -> str:
    """Return the images/s of every arm, and `training` over the bare loop and over the best one; of medians over rounds."""
    found = [line for line in lines if line["name"].startswith("speed/")]
    networks = list(dict.fromkeys(line["network"] for line in found))
    return "\n\n".join([_speeds(found, networks), _ratios(found, networks), *_errors(found)])


def _rates(lines: list[Line], network: str, arm: str) -> list[float]:
    chosen = [line for line in lines if (line["network"], line["arm"]) == (network, arm)]
    return [line["images_per_second"] for line in chosen if "images_per_second" in line]


def _speeds(lines: list[Line], networks: list[str]) -> str:
    def cell(network: str, arm: str) -> str:
        rates = _rates(lines, network, arm)
        if not rates:
            return "–"
        spread = f" ({min(rates):,.0f}–{max(rates):,.0f})" if len(rates) > 1 else ""
        return f"{median(rates):,.0f}{spread}"

    rows = []
    for network in networks:
        one = next(line for line in lines if line["network"] == network)
        rows.append([network, str(one["batch"]), one["precision"], *(cell(network, arm) for arm in ARMS)])
    return table(["images/s", "batch", "precision", *ARMS], rows)


def _ratios(lines: list[Line], networks: list[str]) -> str:
    rows = []
    for network in networks:
        for arm in ("wbar", "wbar_compiled"):
            ours = _rates(lines, network, arm)
            bare, best = _rates(lines, network, "bare"), [_rates(lines, network, one) for one in BEST]
            peers = {one: median(rates) for one, rates in zip(BEST, best, strict=True) if rates}
            fastest = max(peers, key=lambda one: peers[one], default=None)
            lightning = _rates(lines, network, "lightning")
            rows.append(
                [
                    f"{network}: {arm}",
                    *_compared(ours, bare, BARE_GOAL if arm == "wbar" else None),
                    fastest or "–",
                    *_compared(ours, [peers[fastest]] if fastest else [], BEST_GOAL),
                    _compared(ours, lightning, None)[0],
                ]
            )
    header = ["`training`", "over bare", f"≥ {BARE_GOAL}", "best loop", "over it", f"≥ {BEST_GOAL}", "over lightning"]
    return table(header, rows)


def _compared(ours: list[float], peers: list[float], goal: float | None) -> tuple[str, str]:
    """The ratio of medians, and whether the goal is met."""
    if not ours or not peers:
        return "–", "not measured" if goal is not None else ""
    ratio = median(ours) / median(peers)
    return f"{ratio:.3f}", "" if goal is None else verdict(ratio >= goal)


def _errors(lines: list[Line]) -> list[str]:
    return ["\n".join(f"- {line['name']}: {line['error']}" for line in lines if "error" in line)]


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def bandwidth(lines: Iterable[Line]) -> str:
    """Return what averaging moves through the device's memory, over a copy."""
    found = [line for line in lines if line["name"].startswith("bandwidth/")]
    rows = [
        [
            line["name"].removeprefix("bandwidth/"),
            f"{line['milliseconds']:.3f}",
            f"{line['host_milliseconds']:.3f}",
            f"{line['gigabytes_per_second']:,.0f}",
            f"{line['of_the_copy']:.2f}",
            verdict(line["met"]) if "met" in line else "",
        ]
        for line in found
        if "of_the_copy" in line
    ]
    header = ["one update", "device, ms", "host, ms", "GB/s that it needs", "of a copy's", "≥ 0.8"]
    return "\n\n".join([table(header, rows), *_errors(found)])


def waits(lines: Iterable[Line]) -> str:
    """Return where the host waited for the device, and the time of a step."""
    found = [line for line in lines if line["name"].startswith("trace/")]
    rows = [
        [
            line["name"].removeprefix("trace/"),
            str(line["steps"]),
            _counted(line["at_log_points"]),
            _counted(line["outside_log_points"]),
            verdict(line["waits_outside"] == 0),
        ]
        for line in found
        if "waits_outside" in line
    ]
    parts = [table(["seen by", "steps", "at log points", "outside them", "goal: none"], rows)]
    for line in found:
        if "device_idle" in line:
            parts.append(
                f"A step under the profiler: {line['milliseconds_per_step']:.2f} ms, of which the host works "
                f"{line['host_milliseconds_per_step']:.2f} ms and the device {line['device_milliseconds_per_step']:.2f} ms "
                f"(idle {line['device_idle']:.0%}), in {line['kernels_per_step']:.0f} kernels."
            )
            tops = [[top["kernel"], str(top["microseconds_per_step"])] for top in line["top_kernels"]]
            parts.append(table(["kernel", "µs per step"], tops))
    return "\n\n".join(parts)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def first_step(lines: Iterable[Line]) -> str:
    """Return the stations of every job between its submission and its first step."""
    stations = ("answered", "claimed", "loading", "metrics", "progress")
    rows = [
        [
            line["name"].removeprefix("first_step/"),
            *(f"{line[station]:.2f}" for station in stations),
            verdict(line["met"]) if "met" in line else "",
        ]
        for line in lines
        if line["name"].startswith("first_step/") and "progress" in line
    ]
    return table(["job", *(f"{station}, s" for station in stations), "progress ≤ 3 s"], rows)
