"""A slot that is free is used at once: Celery's event loop asks the broker when a task ends, not only once a second."""

import os
from collections.abc import Iterator

import pytest
from kombu.asynchronous import Hub
from kombu.utils.eventio import READ

from wbar_worker.app import _ask_broker_soon


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A loop that has something to wait for."""
    made, (reading, writing) = Hub(), os.pipe()
    made.add(reading, lambda: None, READ)
    yield made
    made.close()
    os.close(writing)
    os.close(reading)


def test_the_loop_turns_once_more_when_the_slot_is_free(hub: Hub) -> None:
    turns = list[int]()
    hub.on_tick.add(lambda: turns.append(len(hub.timer.queue)))
    _ask_broker_soon(hub, sender=None)
    loop = hub.create_loop()
    while 0 not in turns:  # the loop is woken by its timer, which has then been taken out
        next(loop)
    assert turns[0] == 1, "a turn is due as soon as Celery has counted the slot as free"
