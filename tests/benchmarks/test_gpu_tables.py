"""What a GPU's run left in its file is read back, whatever ended the run, and judged by its goals."""

import json
from pathlib import Path

from benchmarks.gpu import tables
from benchmarks.gpu.lines import done, read


def line(arm: str, number: int, **figures: object) -> dict[str, object]:
    name = f"speed/resnet18_32/{arm}/{number}"
    made = {"network": "resnet18_32", "arm": arm, "round": number, "batch": 128, "precision": "bfloat16"}
    return {"name": name, **made, **figures}


LINES = [
    line("wbar", 1, images_per_second=990.0),
    line("wbar", 2, images_per_second=970.0),
    line("bare", 1, images_per_second=1000.0),
    line("graph", 1, images_per_second=2000.0),
    line("compiled", 1, error="OutOfMemoryError: CUDA out of memory"),
]


def test_a_file_that_was_cut_off_says_what_is_done_and_what_failed_is_not(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + '\n{"name": "speed/resnet18_32/lightn')
    assert read(path) == LINES
    assert done(path) == {line["name"] for line in LINES if "error" not in line}
    assert done(tmp_path / "none") == done(None) == set()


def test_ratios_are_of_medians_and_beside_the_best_loop_that_ran() -> None:
    text = tables.speed(LINES)  # type: ignore[arg-type]  # lines are what JSON gives
    assert "| resnet18_32 | 128 | bfloat16 | 980 (970–990) | – | 1,000 | – | 2,000 | – |" in text
    assert "| resnet18_32: wbar | 0.980 | met | graph | 0.490 | MISSED | – |" in text
    assert "compiled/1: OutOfMemoryError" in text


def test_a_wait_outside_the_log_points_misses_its_goal() -> None:
    waits = {"at_log_points": {"cudaStreamSynchronize": 2}, "outside_log_points": {"cudaFree": 1}, "waits_outside": 1}
    text = tables.waits([{"name": "trace/resnet18_32/waits", "steps": 12, **waits}])
    assert "| resnet18_32/waits | 12 | cudaStreamSynchronize 2 | cudaFree 1 | MISSED |" in text
