"""Merges in the service: the library's bits, whatever happens to the worker on the way, and nothing left of what failed."""

import hashlib
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sqlalchemy import update

from tests.conftest import Service, wait_until
from tests.material import write_archive, write_start
from wbar.checkpoints import Fault
from wbar.client import Client
from wbar.errors import (
    CheckpointNotTrainable,
    InvalidTransition,
    NotFound,
    QuotaExceeded,
    ValidationFailed,
)
from wbar.merges import MeanMerge, MergeSource, MergeSpec
from wbar_averaging import Dare, Ties, WeightedMean, merge_checkpoints
from wbar_averaging.merging import MergeMethod
from wbar_store.blobs import Blobs, Received
from wbar_store.database import Database, Tenant
from wbar_store.quotas import Quota
from wbar_store.store import Store
from wbar_store.tables import merges
from wbar_store.validated_uploads import MAX_ATTEMPTS

FOREIGN = {"encoder.weight": (3, 4), "encoder.bias": (3,), "position_ids": (5,)}


def foreign(path: Path, seed: int, **changed: Any) -> Path:
    """A checkpoint of a network that the service does not know."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {
        name: np.arange(*shape) if name.endswith("ids") else rng.standard_normal(shape, np.float32)
        for name, shape in FOREIGN.items()
    }
    save_file({name: value for name, value in (tensors | changed).items() if value is not None}, path)
    return path


def uploaded(client: Client, paths: list[Path]) -> list[str]:
    return [client.checkpoints.create(path, purpose="merge").id for path in paths]


@pytest.mark.parametrize(
    ("sent", "method"),
    [
        ({}, WeightedMean()),
        ({"type": "mean", "shape": "1-sqrt"}, WeightedMean("1-sqrt")),
        ({"type": "mean", "ema": 0.9}, WeightedMean("ema:0.9")),
        ({"type": "ties", "density": 0.5, "scale": 0.7}, Ties(0.5, 0.7)),
        ({"type": "dare", "drop": 0.5, "scale": [0.3, 0.4], "seed": 9}, Dare(0.5, [0.3, 0.4], 9)),
    ],
)
def test_a_merge_has_the_bits_of_the_library(
    service: Service, tmp_path: Path, sent: dict[str, Any], method: MergeMethod
) -> None:
    files = [foreign(tmp_path / f"{n}.safetensors", n) for n in range(3)]
    with service.client() as client:
        base, *others = ids = uploaded(client, files)
        if method.needs_base:
            made = client.merges.create(others, base=base, method=sent, dtype="float64")
        else:
            made = client.merges.create(ids, **({"method": sent} if sent else {}), dtype="float64")
        assert made.status in ("queued", "running", "succeeded")
        merge = client.merges.wait(made.id, timeout=60)
        assert (merge.status, merge.fraction, merge.error) == ("succeeded", 1.0, None)
        found = client.merges.download(merge.id, tmp_path / "found.safetensors")
    lineage = [one.id for one in merge.sources]
    assert (merge.base.id if merge.base else None, lineage) == ((base, others) if method.needs_base else (None, ids))
    expected = tmp_path / "expected.safetensors"
    paths = files[1:] if method.needs_base else files
    merge_checkpoints(paths, expected, method, base=files[0] if method.needs_base else None, dtype="F64")
    one, other = load_file(found), load_file(expected)
    assert {name: value.tobytes() for name, value in one.items()} == {
        name: value.tobytes() for name, value in other.items()
    }
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    assert merge.result is not None
    assert (merge.result.weights.sha256, merge.result.weights.bytes) == (digest, found.stat().st_size)


def test_snapshots_results_and_merges_are_merged(service: Service, tmp_path: Path) -> None:
    with service.client() as client, service.http() as http:
        checkpoint, dataset = (
            client.checkpoints.create(write_start(tmp_path)),
            client.datasets.create(write_archive(tmp_path)),
        )
        job = client.jobs.wait(
            client.jobs.create(checkpoint=checkpoint.id, dataset=dataset.id, method={"cycles": 3}).id or "", timeout=120
        )
        snapshots = client.jobs.snapshots(job.id or "")
        run = client.merges.wait(client.merges.create([job.id or ""], last=2).id, timeout=60)
        assert [one.id for one in run.sources] == [one.id for one in snapshots[-2:]]
        line = client.merges.create(
            [job.id or "", run.id], base=checkpoint.id, method={"type": "task_arithmetic", "scale": [0.5, 0.25]}
        )
        assert client.merges.wait(line.id, timeout=60).status == "succeeded"
        tensors = {}
        for name, path in (
            ("start", f"/v1/checkpoints/{checkpoint.id}/content"),
            ("result", f"/v1/jobs/{job.id}/weights"),
            ("run", f"/v1/merges/{run.id}/weights"),
            ("line", f"/v1/merges/{line.id}/weights"),
            *((str(one.n), f"/v1/jobs/{job.id}/snapshots/{one.n}/weights") for one in snapshots),
        ):
            (tmp_path / name).write_bytes(http.get(path).content)
            tensors[name] = load_file(tmp_path / name)["conv1.weight"].astype(np.float64)
        np.testing.assert_allclose(tensors["run"], (tensors["2"] + tensors["3"]) / 2, rtol=1e-6, atol=1e-7)
        moved = 0.5 * (tensors["result"] - tensors["start"]) + 0.25 * (tensors["run"] - tensors["start"])
        np.testing.assert_allclose(tensors["line"], tensors["start"] + moved, rtol=1e-6, atol=1e-7)
        with pytest.raises(ValidationFailed, match="has 3 snapshots, and `last` asks for 4"):
            client.merges.create([job.id or ""], last=4)


def test_a_checkpoint_of_an_unknown_network_is_taken_for_merging_only(service: Service, tmp_path: Path) -> None:
    path = foreign(tmp_path / "a.safetensors", 0)
    with service.client() as client:
        taken = client.checkpoints.create(path, purpose="merge")
        assert (taken.status, taken.architecture, taken.tensors, taken.parameters) == ("ready", None, 3, 15)
        known = client.checkpoints.create(write_start(tmp_path), purpose="merge")
        assert known.architecture is not None
        dataset = client.datasets.create(write_archive(tmp_path))
        with pytest.raises(CheckpointNotTrainable, match="cannot be trained"):
            client.jobs.create(checkpoint=taken.id, dataset=dataset.id)


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        ({"encoder.weight": np.zeros((3, 5), np.float32)}, "checkpoints_differ", "F32 [3, 4] in ckpt_"),
        ({"encoder.bias": None}, "checkpoints_differ", "encoder.bias: F32 [3] in ckpt_"),
        ({"position_ids": np.zeros(5, int)}, "checkpoints_differ", "position_ids: I64 [5] holds codes"),
        ({"m.lora_A.weight": np.zeros(3, np.float32)}, "checkpoints_differ", "m.lora_A.weight: missing in ckpt_"),
    ],
)
def test_checkpoints_that_do_not_fit_fail_with_both_named(
    service: Service, tmp_path: Path, changed: dict[str, Any], code: str, message: str
) -> None:
    with service.client() as client, service.http() as http:
        ids = uploaded(
            client, [foreign(tmp_path / "a.safetensors", 0), foreign(tmp_path / "b.safetensors", 1, **changed)]
        )
        merge = client.merges.wait(client.merges.create(ids).id, timeout=60)
        assert merge.status == "failed"
        assert merge.error is not None
        assert merge.error.code == code
        assert message in merge.error.message
        assert all(one in merge.error.message for one in ids)
        assert str(service.folder) not in merge.error.message
        answer = http.get(f"/v1/merges/{merge.id}/weights")
        assert (answer.status_code, answer.json()["code"]) == (409, "no_weights")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"checkpoints": []}, "at least 1"),
        ({"checkpoints": ["ckpt_1"], "method": {"type": "ties"}}, "give `base`"),
        ({"checkpoints": ["ckpt_1"], "base": "ckpt_1"}, "leave `base` out"),
        ({"checkpoints": ["ckpt_1"], "last": 2}, "goes with one job"),
        ({"checkpoints": ["ckpt_1"], "method": {"type": "mean", "weights": [1, 2]}}, "2 weights for 1 checkpoints"),
        ({"checkpoints": ["ckpt_1"], "method": {"type": "mean", "weights": [0]}}, "sum above 0"),
        ({"checkpoints": ["ckpt_1"], "method": {"type": "mean", "shape": "linear", "ema": 0.5}}, "give one of"),
        (
            {"checkpoints": ["ckpt_1"], "base": "ckpt_1", "method": {"type": "dare", "scale": [1, 2]}},
            "2 scales for 1 checkpoints",
        ),
        ({"checkpoints": ["ckpt_1"], "base": "ckpt_1", "method": {"type": "dare", "drop": 1}}, "less than 1"),
        ({"checkpoints": ["ds_1"]}, "no id of a checkpoint"),
    ],
)
def test_requests_that_make_no_sense_are_refused(service: Service, body: dict[str, Any], message: str) -> None:
    with service.http() as http:
        answer = http.post("/v1/merges", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
        assert message in answer.text


def test_another_tenant_sees_nothing_of_it(service: Service, tmp_path: Path) -> None:
    with service.client() as client, service.client(service.other_key) as other:
        ids = uploaded(client, [foreign(tmp_path / "a.safetensors", 0)])
        merge = client.merges.wait(client.merges.create(ids, idempotency_key="again").id, timeout=60)
        assert client.merges.create(ids, idempotency_key="again").id == merge.id
        assert other.merges.list().data == []
        for asked in (
            lambda: other.merges.get(merge.id),
            lambda: other.merges.create(ids),
            lambda: other.merges.create([merge.id]),
        ):
            with pytest.raises(NotFound):
                asked()
        assert next(iter(client.merges.iterate())).id == merge.id
        with pytest.raises(InvalidTransition):
            client.merges.cancel(merge.id)
        client.merges.delete(merge.id)
        with pytest.raises(NotFound):
            client.merges.get(merge.id)


TIMES = 30  # that a checkpoint is merged with itself, so that it takes some seconds


def large(client: Client, folder: Path) -> tuple[str, str, list[Path]]:
    """Two checkpoints of four million numbers: TIES of many of them takes long enough to be interrupted."""
    paths = []
    for n in range(2):
        paths.append(folder / f"large{n}.safetensors")
        save_file({"w": np.random.default_rng(n).standard_normal(4_000_000, np.float32)}, paths[-1])
    one, two = uploaded(client, paths)
    return one, two, paths


@pytest.mark.long
def test_a_merge_whose_worker_is_killed_ends_in_the_same_bits(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        base, other, paths = large(client, tmp_path)
        # What is read stays, though its checkpoints are deleted.
        made = client.merges.create([other] * TIMES, base=base, method={"type": "ties"})
        wait_until(lambda: client.merges.get(made.id).fraction > 0, 60, "the first pieces")
        client.checkpoints.delete(base)
        client.checkpoints.delete(other)
        breakable.signal("ingest", signal.SIGKILL)
        breakable.start("ingest")
        merge = client.merges.wait(made.id, timeout=240)
        assert (merge.status, merge.error) == ("succeeded", None)
        assert merge.attempts == 2
        found = client.merges.download(merge.id, tmp_path / "found.safetensors")
        expected = merge_checkpoints([paths[1]] * TIMES, tmp_path / "expected.safetensors", Ties(), base=paths[0]).path
        assert load_file(found)["w"].tobytes() == load_file(expected)["w"].tobytes()
        assert breakable.blob_files() == {merge.result.weights.sha256 if merge.result else ""}


@pytest.mark.long
def test_a_running_merge_is_cancelled_at_once_and_leaves_nothing(breakable: Service, tmp_path: Path) -> None:
    breakable.start()
    with breakable.client() as client:
        base, other, _ = large(client, tmp_path)
        made = client.merges.create([other] * 12, base=base, method={"type": "ties"})
        wait_until(lambda: client.merges.get(made.id).status == "running", 60, "the worker")
        assert client.merges.cancel(made.id).status == "cancelled"
        assert client.merges.cancel(made.id).status == "cancelled"
        folder = Path(breakable.environment["WBAR_SCRATCH"]) / "merges"
        wait_until(lambda: not list(folder.glob("*")), 60, "the end of the attempt")
        client.checkpoints.delete(base)
        client.checkpoints.delete(other)
        wait_until(lambda: breakable.blob_files() == set(), 30, "the end of the blobs")


# The rows.

MINE = Tenant("default")


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Store:
    return Store(database, Blobs(f"file://{tmp_path / 'blobs'}", database), None)  # type: ignore[arg-type]  # no notifier


def spec(*digests: str) -> MergeSpec:
    sources = tuple(MergeSource(id=f"ckpt_{n}", sha256=sha256) for n, sha256 in enumerate(digests))
    return MergeSpec(sources=sources, base=None, method=MeanMerge(), dtype=None)


def stored(store: Store, content: bytes) -> Received:
    upload = store.blobs.receive()
    upload.write(content)
    return upload.finish()


def test_inputs_are_kept_until_the_end_and_no_longer(store: Store) -> None:
    received = stored(store, b"an input")
    with store.blobs.keep(received):
        merge = store.merges.create(MINE, spec(received.sha256, received.sha256), None, 8, None)
    assert store.blobs.collect() == 0
    _, blobs = store.merges.cancel(MINE, merge.id)
    assert store.blobs.collect([*blobs]) == 1
    store.merges.remove(MINE, merge.id)


def test_a_stale_attempt_changes_nothing(store: Store) -> None:
    merge = store.merges.create(MINE, spec("a" * 64), None, 8, None)
    first = store.merges.claim(merge.id)
    assert first is not None
    assert store.merges.claim(merge.id) is None, "it is leased"
    store.merges.release(first.claim)
    second = store.merges.claim(merge.id)
    assert second is not None
    assert (second.attempts, store.merges.renew(first.claim, 0.5)) == (2, False)
    assert not store.merges.fail(first.claim, Fault(code="merge_failed", message="m"))
    assert store.merges.renew(second.claim, 0.5)
    assert store.merges.get(MINE, merge.id).fraction == 0.5
    assert store.merges.fail(second.claim, Fault(code="merge_failed", message="m"))
    assert store.merges.get(MINE, merge.id).status == "failed"


def test_a_merge_that_ends_every_worker_fails(store: Store) -> None:
    merge = store.merges.create(MINE, spec("a" * 64), None, 8, None)
    assert store.merges.overdue(False) == [merge.id], "no worker was told"
    store.merges.notified(merge.id)
    assert store.merges.overdue(False) == []
    for _ in range(MAX_ATTEMPTS):
        record = store.merges.claim(merge.id)
        assert record is not None
        assert not store.merges.give_up(merge.id), "its lease has not run out"
        store.merges.release(record.claim)
    assert store.merges.claim(merge.id) is None
    assert store.merges.give_up(merge.id)
    ended = store.merges.get(MINE, merge.id)
    assert (ended.status, ended.error.code if ended.error else "") == ("failed", "attempts_exhausted")


def test_a_merge_is_deleted_once_its_time_is_over(store: Store) -> None:
    received = stored(store, b"the result")
    merge = store.merges.create(MINE, spec("a" * 64), None, 8, 60)
    record = store.merges.claim(merge.id)
    assert record is not None
    with store.blobs.keep(received):
        assert store.merges.succeed(record.claim, received)
    ended = store.merges.get(MINE, merge.id)
    assert ended.expires_at is not None
    assert ended.finished_at is not None
    assert ended.expires_at - ended.finished_at == pytest.approx(60, abs=0.1)
    store.expire()
    assert store.merges.exists(MINE, merge.id)
    with store.database.write() as connection:
        connection.execute(update(merges).values(expires_at=merges.c.expires_at - 120))
    store.expire()
    assert not store.merges.exists(MINE, merge.id)
    assert store.blobs.collect() == 0, "its weights went with it"


def test_merges_count_for_the_quotas(store: Store) -> None:
    limits = Quota(bytes=100, jobs=1)
    merge = store.merges.create(MINE, spec("a" * 64), None, 80, None)
    with pytest.raises(QuotaExceeded, match="merges"):
        store.quotas.check_jobs(MINE, limits)
    with pytest.raises(QuotaExceeded, match="the 80 that are kept"):
        store.quotas.check_bytes(MINE, limits, 30)
    store.quotas.check_bytes(Tenant("other"), limits, 30)
    store.merges.cancel(MINE, merge.id)
    store.quotas.check_jobs(MINE, limits)
    store.quotas.check_bytes(MINE, limits, 30)
