"""Children are asked with typed values and answer with messages; nothing that they send is unpickled."""

import signal
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.worker.entries import DIE, SEND_A_PICKLE, SEND_FROM_THREADS, WAIT_FOR_STOP
from wbar_training.messages import Crashed, FromAttempt, Stop, Stopped
from wbar_worker import processes
from wbar_worker.children import VERDICTS, warm_up


def test_messages_go_both_ways_and_name_their_kind() -> None:
    child = processes.start(WAIT_FOR_STOP, None)
    try:
        assert child.receive(FromAttempt) == Crashed(why="started")
        child.send(Stop(reason="drain"))
        assert child.receive(FromAttempt) == Stopped(reason="drain")
        with pytest.raises(EOFError):
            child.receive(FromAttempt)
        assert child.crashed().why == "its process ended with exit code 0"
    finally:
        child.end()
    child.send(Stop(reason="cancel"))  # to one that has ended: nothing happens


def test_messages_of_several_threads_arrive_whole() -> None:
    child = processes.start(SEND_FROM_THREADS, 50)
    try:
        for _ in range(4 * 50):
            message = child.receive(FromAttempt)
            assert isinstance(message, Crashed)
            assert (len(message.why), len(set(message.why))) == (40_000, 1)
    finally:
        child.end()


def test_what_a_child_sends_is_never_unpickled(tmp_path: Path) -> None:
    child = processes.start(SEND_A_PICKLE, tmp_path / "ran")
    try:
        with pytest.raises(ValidationError):
            child.receive(VERDICTS)
    finally:
        child.end()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "SIGKILL (the system was out of memory?)"), (signal.SIGSEGV, "SIGSEGV")]
)
def test_a_child_that_was_killed_says_how(number: signal.Signals, said: str) -> None:
    child = processes.start(DIE, number)
    try:
        with pytest.raises(EOFError):
            child.receive(FromAttempt)
        assert child.crashed().why == f"its process was ended by {said}"
    finally:
        child.end()


def test_the_machine_is_described_by_a_child() -> None:
    machine = warm_up()
    assert machine.gpus >= 0
    assert machine.torch.split(".")[0].isdigit()
