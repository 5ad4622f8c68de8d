"""Means along a run are what the run would have been with its steps made smaller: the formula's own claim, in float64."""

from math import cos, pi, sqrt
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from wbar_averaging import decay_weights, write_safetensors
from wbar_averaging.commands import app

DECAYS = {"linear": lambda t: 1 - t, "cosine": lambda t: (1 + cos(pi * t)) / 2, "1-sqrt": lambda t: 1 - sqrt(t)}


@pytest.mark.parametrize("shape", DECAYS)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_mean_is_the_run_with_decayed_steps(shape: str, count: int) -> None:
    draws = torch.Generator().manual_seed(count)
    start = torch.randn(5, generator=draws, dtype=torch.float64)
    moves = [torch.randn(5, generator=draws, dtype=torch.float64) for _ in range(count - 1)]
    checkpoints = [start]
    for move in moves:
        checkpoints.append(checkpoints[-1] + move)
    weights = decay_weights(shape, count)
    mean = sum(weight * checkpoint for weight, checkpoint in zip(weights, checkpoints, strict=True))
    decayed = start + sum(
        (DECAYS[shape](number / count) * move for number, move in enumerate(moves, start=1)), torch.zeros(5)
    )
    torch.testing.assert_close(mean, decayed.double(), atol=1e-13, rtol=1e-13)
    assert sum(weights) == pytest.approx(1, abs=1e-14)
    assert min(weights) > 0


def test_linear_is_the_equal_mean() -> None:
    assert decay_weights("linear", 4) == [0.25] * 4


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_ema_is_the_recurrence(decay: float) -> None:
    values = [3.0, -1.0, 4.0, 1.5]
    mean = values[0]
    for value in values[1:]:
        mean = decay * mean + (1 - decay) * value
    found = sum(weight * value for weight, value in zip(decay_weights(f"ema:{decay}", 4), values, strict=True))
    assert found == pytest.approx(mean, abs=1e-14)


@pytest.mark.parametrize(
    ("shape", "message"), [("quadratic", "linear, cosine, 1-sqrt or ema:D"), ("ema:1", "ema:0.9"), ("ema:x", "ema:0.9")]
)
def test_what_is_no_shape_is_said(shape: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decay_weights(shape, 3)
    with pytest.raises(ValueError, match="at least 1"):
        decay_weights("linear", 0)


def test_the_command_takes_shapes(tmp_path: Path) -> None:
    files = [tmp_path / f"step-{n}.safetensors" for n in range(3)]
    for n, path in enumerate(files):
        write_safetensors(path, {"w": torch.tensor([float(n)])}, {})
    out = tmp_path / "mean.safetensors"
    for shape in ("linear", "cosine", "1-sqrt", "ema:0.9"):
        done = CliRunner().invoke(app, ["average", *map(str, files), "-o", str(out), "--weights", shape])
        assert done.exit_code == 0, done.stderr
        expected = sum(weight * n for n, weight in enumerate(decay_weights(shape, 3)))
        assert load_file(out)["w"].item() == pytest.approx(expected, rel=1e-6)
    done = CliRunner().invoke(app, ["average", *map(str, files), "--weights", "quadratic"])
    assert (done.exit_code, "1-sqrt" in done.stderr) == (2, True)
