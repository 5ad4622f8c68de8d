"""A network that does not answer in time is ended and named, and the next request finds a fresh one."""

import io
import os
import shutil
import signal
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import Broker
from tests.store.rows import insert_inputs
from wbar.predictions import Answered, Given, NotAnswered, PredictedNetwork
from wbar.spec import Network, StoredWeights
from wbar_averaging import write_safetensors
from wbar_store.migrate import upgrade
from wbar_store.predictions import PredictionBox
from wbar_store.store import Store
from wbar_training.networks.architectures import initialized
from wbar_worker.predicting import Predictor
from wbar_worker.settings import WorkerSettings

NETWORK = Network("resnet20", 3)
BLOB = "a" * 64


@pytest.fixture
def broker() -> Iterator[Broker]:
    own = Broker()
    own.start()
    yield own
    own.kill()
    shutil.rmtree(own.folder)


@pytest.fixture
def settings(tmp_path: Path, broker: Broker) -> WorkerSettings:
    return WorkerSettings(
        database_url=f"sqlite:///{tmp_path / 'wbar.db'}", broker_url=broker.url, blobs_url=f"file://{tmp_path / 'blobs'}",
        scratch=tmp_path / "scratch",
    )  # fmt: skip


@pytest.fixture
def store(settings: WorkerSettings) -> Iterator[Store]:
    opened = Store.open(settings)
    upgrade(opened.database)
    insert_inputs(opened.database)
    path = Path(str(opened.blobs.root)) / opened.blobs.path(BLOB)
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    write_safetensors(path, initialized(NETWORK).state_dict(), {})
    yield opened
    opened.close()


def asked() -> PredictedNetwork:
    weights = StoredWeights(id="job_1", sha256=BLOB, blob=BLOB, prefix="", network=NETWORK)
    return PredictedNetwork(
        weights=weights, task="classification", labels=("a", "b", "c"), image_size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3,
        augment="none", crop_ratio=1.0, interpolation="bilinear",
    )  # fmt: skip


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(data, "PNG")
    return data.getvalue()


def answer(predictor: Predictor, broker: Broker) -> Given | NotAnswered:
    box = PredictionBox(broker.url)
    try:
        with box.asking("default", asked(), [picture()]) as name:
            working = Thread(target=predictor.run, args=(name,))
            working.start()
            found = box.answer_of(name, 60, 60)
            working.join()
            return found
    finally:
        box.close()


@pytest.mark.long  # it loads the network twice
def test_a_network_that_does_not_answer_in_time_is_ended(
    store: Store, settings: WorkerSettings, broker: Broker
) -> None:
    patient = Predictor(store, settings)
    hasty = Predictor(store, settings, answer_seconds=1.0)
    try:
        first = answer(patient, broker)
        assert isinstance(first, Answered)
        hasty._held = patient._held  # the same loaded network, under a time limit that its load would not keep
        [held] = hasty._held.values()
        assert held.child is not None
        process = held.child.process
        os.kill(process.pid or 0, signal.SIGSTOP)
        late = answer(hasty, broker)
        assert late == NotAnswered(message="the network did not answer: it took longer than 1 s")
        assert not process.is_alive()
        again = answer(patient, broker)
        assert isinstance(again, Answered)
        assert not again.cached
        assert again.probabilities == first.probabilities
        assert not list((settings.scratch / "predict").iterdir())
    finally:
        patient.stop()


def test_a_network_that_answers_with_something_else_is_ended(
    store: Store, settings: WorkerSettings, broker: Broker
) -> None:
    predictor = Predictor(store, settings)
    try:
        first = answer(predictor, broker)
        assert isinstance(first, Answered)
        [held] = predictor._held.values()
        assert held.child is not None
        process = held.child.process
        held.child.pipe, other_end = Pipe()
        other_end.send_bytes(b"nonsense")
        failed = answer(predictor, broker)
        assert failed == NotAnswered(message="the worker failed; the next request begins afresh")
        assert not process.is_alive()
        again = answer(predictor, broker)
        assert isinstance(again, Answered)
        assert (again.cached, again.probabilities) == (False, first.probabilities)
    finally:
        predictor.stop()


class Strange(PredictedNetwork):
    def document(self) -> dict[str, Any]:
        return super().document() | {"task": "counting"}


def test_a_request_of_another_version_is_said_to_be_unknown(
    store: Store, settings: WorkerSettings, broker: Broker
) -> None:
    predictor, box = Predictor(store, settings), PredictionBox(broker.url)
    strange = Strange.model_construct(**dict(asked()))
    try:
        with box.asking("default", strange, [picture()]) as name:
            predictor.run(name)
            said = box.answer_of(name, 60, 60)
        assert said == NotAnswered(message="the worker is of a version that does not know such a request")
    finally:
        box.close()


def test_a_question_about_classes_is_as_it_always_was() -> None:
    """Workers of before refuse what they do not know."""
    assert set(asked().document()) == {
        "weights", "task", "labels", "image_size", "mean", "std", "augment", "crop_ratio", "interpolation", "recipe", "seed",
    }  # fmt: skip
    answered = {"type": "answered", "probabilities": [[0.5, 0.5]], "deviations": None, "cached": True, "seconds": 0.5}
    assert Answered.model_validate(answered).model_dump() == answered
