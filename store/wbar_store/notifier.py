"""Notifications: a Celery message that carries an id and nothing else. The row is the truth; a lost message loses nothing."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wbar_store.broker import OwnCelery

RUN_JOB = "wbar.run_job"
INGEST = "wbar.ingest"
PREDICT = "wbar.predict"
QUEUES = {RUN_JOB: "train", INGEST: "ingest", PREDICT: "ingest"}


class Notifier:
    """Sends notifications, and reports whether the broker took them; after a failure the sweeper notifies again."""

    def __init__(self, broker_url: str) -> None:
        self._url = broker_url

    @cached_property
    def _celery(self) -> "OwnCelery":
        # Celery takes long to load, and the API starts before its first message.
        from wbar_store.broker import OwnCelery

        celery = OwnCelery(self._url, set_as_current=False)
        celery.conf.update(
            task_ignore_result=True,
            broker_connection_retry_on_startup=True,
            broker_transport_options={"socket_connect_timeout": 2, "socket_timeout": 2, "max_retries": 0},
        )
        return celery

    def notify(self, task: str, object_id: str) -> bool:
        """Notify a worker of an object; False if the broker did not take the message. task: RUN_JOB, INGEST or PREDICT."""
        try:
            self._celery.send_task(task, args=[object_id], queue=QUEUES[task], retry=False, ignore_result=True)
        except self._broker_errors():
            return False
        return True

    def waiting(self, queue: str) -> int:
        """Return how many messages no worker has taken yet. Raises if the broker does not answer."""
        with self._celery.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
            return int(connection.default_channel.queue_declare(queue, passive=False).message_count)

    def check(self) -> None:
        """Raise if the broker does not answer."""
        with self._celery.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)

    def close(self) -> None:
        if "_celery" in self.__dict__:
            self._celery.close()

    @staticmethod
    def _broker_errors() -> tuple[type[BaseException], ...]:
        from kombu.exceptions import KombuError, OperationalError
        from redis.exceptions import RedisError

        return (OperationalError, KombuError, RedisError, OSError)

    def __enter__(self) -> "Notifier":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
