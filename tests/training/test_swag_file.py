"""The Gaussian of the snapshots as a file: its parts are those of a slow twin, and a job without `swag` has none."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.training.jobs import METHOD, Recorder, make_job, run


def test_the_file_has_mean_variance_and_deviations_under_the_uploaded_names(tmp_path: Path) -> None:
    told = Recorder()
    job = make_job(tmp_path, METHOD.model_copy(update={"cycles": 3}), swag=1)
    outcome = run(job, told)
    assert outcome.swag is not None
    found = load_file(outcome.swag)
    with safe_open(outcome.swag, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["wbar.snapshots"], metadata["wbar.swag_columns"]) == ("3", "3")
    assert metadata["wbar.architecture"] == "resnet20"
    snapshots = [load_file(told.snapshots[n]) for n in (1, 2, 3)]
    assert {name.removeprefix("mean.") for name in found if name.startswith("mean.")} == set(snapshots[0])
    for name, mean in ((name.removeprefix("mean."), one) for name, one in found.items() if name.startswith("mean.")):
        if not mean.is_floating_point():
            assert torch.equal(mean, snapshots[-1][name])
            continue
        points = torch.stack([one[name].double() for one in snapshots])
        torch.testing.assert_close(mean.double(), points.mean(0), atol=1e-6, rtol=1e-5)
        if "running" in name:
            assert f"variance.{name}" not in found
            continue
        spread = points.var(0, unbiased=False)
        torch.testing.assert_close(found[f"variance.{name}"].double(), spread, atol=1e-7, rtol=1e-3)
        so_far = torch.stack([points[: n + 1].mean(0) for n in range(3)])
        torch.testing.assert_close(found[f"deviations.{name}"].double(), points - so_far, atol=1e-6, rtol=1e-3)


def test_one_snapshot_has_no_spread_and_a_job_that_did_not_ask_no_file(tmp_path: Path) -> None:
    assert run(make_job(tmp_path / "plain", METHOD.model_copy(update={"cycles": 1})), Recorder()).swag is None
