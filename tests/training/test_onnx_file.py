"""The ONNX file of a job's weights: the same outputs as the network's, or no file and the reason."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.jobs import METHOD, LocalJob, Recorder, make_job, run
from wbar.method import CyclicSwa
from wbar_training import onnx_file
from wbar_training.messages import Succeeded
from wbar_training.networks.architectures import load
from wbar_training.networks.tensors import read_tensors
from wbar_training.onnx_file import PACKAGES, TOLERANCE

ONE: CyclicSwa = METHOD.model_copy(update={"cycles": 1})


class Killed(BaseException):
    """Stands for the end of the process."""


def logits(path: Path, inputs: Tensor) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": inputs.numpy()})[0]


def asking(job: LocalJob) -> LocalJob:
    return job.changed(formats=("onnx",))


def test_a_job_that_did_not_ask_has_none(tmp_path: Path) -> None:
    outcome = run(make_job(tmp_path, ONE), Recorder())
    assert (outcome.onnx, outcome.result.formats) == (None, [])
    assert list(tmp_path.glob("*.onnx")) == []


def test_without_the_packages_the_job_succeeds_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "PACKAGES", (*PACKAGES, "no_such_package"))
    told = Recorder()
    outcome = run(asking(make_job(tmp_path, ONE)), told)
    (offered,) = outcome.result.formats
    assert outcome.onnx is None
    assert (offered.format, offered.sha256) == ("onnx", None)
    assert offered.reason == "the worker has no no_such_package: its operator installs wbar[onnx]"
    assert f"warning: there is no ONNX file: {offered.reason}" in told.logs
    message = Succeeded(outcome=outcome)
    assert Succeeded.model_validate_json(message.model_dump_json()) == message


def test_too_large_for_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    (offered,) = run(asking(make_job(tmp_path, ONE)), Recorder()).result.formats
    assert offered.reason is not None
    assert offered.reason.startswith("an ONNX file holds 2 GiB, and the weights are 1,")


@pytest.mark.long
def test_it_gives_the_outputs_of_the_network(tmp_path: Path) -> None:
    job = asking(make_job(tmp_path, ONE))
    outcome = run(job, Recorder())
    assert outcome.onnx is not None
    (offered,) = outcome.result.formats
    assert (offered.reason, offered.bytes) == (None, outcome.onnx.stat().st_size)
    assert offered.difference is not None
    assert offered.difference <= TOLERANCE
    assert offered.images == 256
    message = Succeeded(outcome=outcome)
    assert Succeeded.model_validate_json(message.model_dump_json()) == message
    network = load(job.spec.network, read_tensors(outcome.weights))[0].eval()
    for images in (1, 2, 7):  # the batch is free
        inputs = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(images))
        with torch.inference_mode():
            np.testing.assert_allclose(logits(outcome.onnx, inputs), network(inputs).numpy(), rtol=1e-4, atol=1e-4)
    told = metadata(outcome.onnx)
    assert json.loads(told["wbar.normalize"]).keys() == {"mean", "std"}
    assert json.loads(told["wbar.classes"]) == list("0123456789")
    assert told["wbar.run"] == job.spec.run_digest()
    assert str(Path(onnx_file.__file__).parent).encode() not in outcome.onnx.read_bytes(), "no path of this machine"


@pytest.mark.long
def test_a_kill_while_it_is_made_only_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(asking(make_job(tmp_path / "whole", ONE)), Recorder())
    job = asking(make_job(tmp_path / "cut", ONE))

    def export(*_: Any, **__: Any) -> None:
        (job.scratch / "averaged.onnx").write_bytes(b"half a file")
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(torch.onnx, "export", export)
        with pytest.raises(Killed):
            run(job, Recorder())
    states = sorted(job.scratch.glob("state-*"))
    assert states, [path.name for path in job.scratch.iterdir()]
    again = run(job.changed(resume=states[-1]), Recorder())
    assert again.weights.read_bytes() == whole.weights.read_bytes()
    assert again.onnx is not None
    assert whole.onnx is not None
    assert again.onnx.read_bytes() == whole.onnx.read_bytes()


@pytest.mark.long
def test_outputs_that_differ_are_noticed(tmp_path: Path) -> None:
    inputs = torch.randn(5, 3)
    network, other = nn.Linear(3, 2).eval(), nn.Linear(3, 2).eval()
    onnx_file._export(network, inputs, tmp_path / "x.onnx", {"a": "b"})
    assert metadata(tmp_path / "x.onnx") == {"a": "b"}
    assert onnx_file._largest_difference(network, inputs, tmp_path / "x.onnx") <= TOLERANCE
    assert onnx_file._largest_difference(other, inputs, tmp_path / "x.onnx") > TOLERANCE
    with torch.no_grad():
        other.weight.fill_(float("nan"))
    assert onnx_file._largest_difference(other, inputs, tmp_path / "x.onnx") == float("inf")


class Singular(nn.Module):
    """ONNX has no operator for it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.linalg.svdvals(inputs)


@pytest.mark.long
def test_an_operator_that_does_not_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as raised:
        onnx_file._export(Singular().eval(), torch.randn(2, 3, 3), tmp_path / "x.onnx", {})
    reason = onnx_file._why(raised.value)
    assert "svd" in reason
    assert "\n" not in reason
    assert not (tmp_path / "x.onnx").exists()


def metadata(path: Path) -> dict[str, str]:
    import onnx

    return {one.key: one.value for one in onnx.load(path).metadata_props}
