"""The benchmark of what averaging gives runs from a start's training to the scores of its arms."""

from pathlib import Path

from benchmarks.gain.arms import ORDER, Bench
from benchmarks.gain.blocks import Block


def test_a_start_is_trained_and_arms_go_on_from_it(tmp_path: Path) -> None:
    bench = Bench(Block("digits", 400, "resnet20", "settled", 2), 0, tmp_path)
    arms = ("control", "torch SWA", "cyclic")
    bench.make_start(6)
    start = bench.start_score()
    found = dict(line for arm in arms for line in bench.arm(arm))
    assert list(found) == [name for name in ORDER if name in (*arms, "ensemble")]
    for score in (start, *found.values()):
        assert 0.3 < score["accuracy"] <= 1
        assert 0 < score["nll_calibrated"] < 2
