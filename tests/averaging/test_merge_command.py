"""`wbar merge`: the options arrive, and errors are a sentence with exit code 2, and nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from tests.averaging.test_lora import adapter
from wbar_averaging.commands import app
from wbar_averaging.decay_weights import decay_weights
from wbar_averaging.pytorch_file import UnreadableCheckpoint
from wbar_averaging.run_checkpoints import last_checkpoints


def merge(*words: object) -> Result:
    return CliRunner().invoke(app, ["merge", *map(str, words)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder: checkpoints of the steps 5, 50, 100 and 1000, each of one number, their step."""
    folder = tmp_path / "run"
    for step in (100, 5, 1000, 50):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        save_file({"w": np.array([step], np.float32)}, folder / f"checkpoint-{step}" / "model.safetensors")
    (folder / "logs-7").mkdir()
    (folder / "notes-8.txt").write_text("none")
    return folder


def value(path: Path) -> float:
    return float(load_file(path)["w"][0])


def test_the_last_of_a_run_are_merged(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    done = merge(run, "--last", 3, "-o", out)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{out}\n", "")
    assert value(out) == pytest.approx((50 + 100 + 1000) / 3)
    assert merge(run, "--last", 2, "-o", out, "--weights", "1-sqrt").exit_code == 0
    weights = decay_weights("1-sqrt", 2)
    assert value(out) == pytest.approx(100 * weights[0] + 1000 * weights[1])
    named = [run / f"checkpoint-{step}" for step in (5, 50, 100)]
    assert merge(*named, "--last", 2, "-o", out).exit_code == 0
    assert value(out) == 75


def test_a_runs_files_are_ordered_by_the_last_number_in_their_names(tmp_path: Path) -> None:
    for name in ("v2-step9.safetensors", "v1-step10.safetensors", "v2-step100.pt", ".v1-step1000.pt", "best.pt"):
        (tmp_path / name).touch()
    names = [path.name for path in last_checkpoints(tmp_path, None)]
    assert names == ["v2-step9.safetensors", "v1-step10.safetensors", "v2-step100.pt"]
    (tmp_path / "copy-step9.safetensors").touch()
    with pytest.raises(UnreadableCheckpoint, match="are both of step 9"):
        last_checkpoints(tmp_path, 1)


def test_measurements_in_names_are_no_steps(tmp_path: Path) -> None:
    names = [f"epoch={n}-val_loss={loss}.ckpt" for n, loss in ((1, "0.90"), (2, "0.5"), (10, "0.45"))]
    for name in (*names, "best-0.45.ckpt"):
        (tmp_path / name).touch()
    assert [path.name for path in last_checkpoints(tmp_path, None)] == names
    (tmp_path / "step=7.ckpt").touch()
    with pytest.raises(UnreadableCheckpoint, match=r"counts epochs and step=7\.ckpt something else"):
        last_checkpoints(tmp_path, 1)


@pytest.mark.parametrize(
    "names",
    [
        ["epoch_1_iter_500.pt", "epoch_1_iter_1000.pt", "epoch_2_iter_1500.pt"],
        ["epoch=0-batch=200.ckpt", "epoch=1-batch=100.ckpt"],
        ["epoch=2-step=900.ckpt", "epoch=3-step=1000-v1.ckpt"],
        ["epoch_1.pt", "epoch_2.pt", "model_final_300.pt"],
        ["ckpt-v1.100.pt", "ckpt-v1.200.pt"],
        ["ema_0.999_step20.pt", "ema_0.999_step100.pt"],
        ["model-v1.pt", "model-v2.pt"],
        ["epoch=9-val_acc=0.5.ckpt", "epoch=10-val_acc=0.45.ckpt"],
        ["epoch_1_acc0.9.pt", "epoch_2_acc0.91.pt", "epoch_10_acc0.8.pt"],
        ["epoch_1_acc92.pt", "epoch_2_acc90.pt", "epoch_10_acc71.pt"],
        ["epoch_9_lr1e-4.pt", "epoch_12_lr1e-5.pt"],
        ["step_100_seed1.pt", "step_200_seed1.pt"],
        ["iter_900_bs32.pt", "iter_1000_bs32.pt"],
        ["lr_step_3_iter_100.pt", "lr_step_3_iter_200.pt"],
        ["net_acc0.97_9.pt", "net_acc0.91_10.pt"],
    ],
)
def test_names_of_many_trainers_are_ordered_by_what_they_count(tmp_path: Path, names: list[str]) -> None:
    for name in reversed(names):
        (tmp_path / name).touch()
    assert [path.name for path in last_checkpoints(tmp_path, None)] == names


def test_a_folder_of_nothing_but_a_trainers_own_files_is_no_checkpoint(run: Path) -> None:
    (run / "checkpoint-2000").mkdir()
    (run / "checkpoint-2000" / "training_args.bin").touch()
    assert [path.name for path in last_checkpoints(run, 1)] == ["checkpoint-1000"]


def test_the_methods_and_their_options_arrive(run: Path, tmp_path: Path) -> None:
    base, one, two = (run / f"checkpoint-{step}" for step in (5, 50, 100))
    out = tmp_path / "m.safetensors"
    for options, expected in (
        (["--method", "task_arithmetic", "--scale", "0.5"], 5 + 0.5 * 45 + 0.5 * 95),
        (["--method", "task_arithmetic", "--scale", "2,-1"], 5 + 2 * 45 - 95),
        (["--method", "ties", "--density", "1", "--scale", "2"], 5 + 2 * (45 + 95) / 2),
        (["--method", "dare", "--drop", "0", "--seed", "3"], 5 + 45 + 95),
    ):
        done = merge(one, two, "--base", base, "-o", out, *options)
        assert done.exit_code == 0, done.stderr
        assert value(out) == expected
    done = merge(one, two, "-o", out, "--accumulate", "float32", "--dtype", "f64", "--json")
    assert json.loads(done.stdout) == {"path": str(out), "carried": [], "residuals": None}
    assert load_file(out)["w"].dtype == np.float64


def test_a_folder_is_made_with_shards_and_their_index(run: Path, tmp_path: Path) -> None:
    (run / "checkpoint-5" / "config.json").write_text("{}")
    done = merge(run / "checkpoint-5", "-o", tmp_path / "m", "--max-shard-size", "5GB", "--json")
    assert json.loads(done.stdout)["carried"] == ["config.json"]
    assert (tmp_path / "m" / "config.json").exists()


def test_what_a_rank_leaves_out_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = [adapter(tmp_path / name, rng) for name in "ab"]
    done = merge(*folders, "-o", tmp_path / "m", "--lora-rank", 2)
    assert done.exit_code == 0
    assert "rank 2 leaves out " in done.stderr
    assert "the most of 3 modules" in done.stderr
    done = merge(*folders, "-o", tmp_path / "n", "--lora-rank", 4, "--json")
    assert max(json.loads(done.stdout)["residuals"].values()) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "slerp"], "--method slerp: there are mean, task_arithmetic, ties, dare"),
        (["--density", "0.3"], "--density is an option of ties, not of mean"),
        (["--method", "ties", "--weights", "1,2"], "--weights is an option of mean, not of ties"),
        (["--method", "ties"], "adds to a base: give one"),
        (["--base", "BASE"], "a mean has no base"),
        (["--method", "ties", "--base", "BASE", "--scale", "1,2"], "ties has one λ"),
        (["--method", "dare", "--base", "BASE", "--scale", "x"], "--scale x: numbers with commas"),
        (["--last", "3"], "--last 3: 2 checkpoints are named"),
        (["--lora-rank", "3"], "a rank goes with adapters only"),
        (["-o", "BASE"], "choose another name"),
        (["--max-shard-size", "5 parsecs"], "a size was expected"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_a_sentence(
    run: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    base, one, two = (run / f"checkpoint-{step}" for step in (5, 50, 100))
    before = sorted(tmp_path.rglob("*"))
    words = [str(base) if word == "BASE" else word for word in options]
    done = merge(one, two, "-o", tmp_path / "m.safetensors", *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_runs_folder_with_too_few_is_refused(run: Path, tmp_path: Path) -> None:
    assert (
        "holds 4 checkpoints with a step in their names (a decimal fraction is none), not 5"
        in merge(run, "--last", 5).stderr
    )
    assert "at least 1" in merge(run, "--last", 0).stderr
    assert "is one checkpoint" in merge(_indexed(tmp_path / "x"), "--last", 1).stderr


def _indexed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text("{}")
    return folder
