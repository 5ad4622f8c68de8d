"""A Celery of wbar's own, whatever Celery or Django project the current folder and the environment belong to.

By itself Celery imports what CELERY_LOADER, CELERY_CONFIG_MODULE and DJANGO_SETTINGS_MODULE name, from the current folder
first, and takes the broker of CELERY_BROKER_URL rather than the one that it is given.
"""

from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader


class _OwnLoader(AppLoader):  # type: ignore[misc]  # Celery has no types
    def read_configuration(self, env: str = "") -> dict[str, Any]:  # noqa: ARG002  # the variable that is not read
        return {}


class OwnCelery(Celery):  # type: ignore[misc]  # Celery has no types
    """A Celery application configured by its arguments and `conf.update` alone.

    broker_url: redis://…, redis+socket://… or memory://.
    set_as_current: whether tasks that are defined without an application belong to this one.
    """

    backend_cls = "disabled"  # before CELERY_RESULT_BACKEND; no task has a result
    builtin_fixups = frozenset[str]()  # Django's, which puts the current folder first on the path

    def __init__(self, broker_url: str, set_as_current: bool = True) -> None:
        # The class itself: a name would be looked for in the current folder.
        super().__init__("wbar", broker=broker_url, loader=_OwnLoader, set_as_current=set_as_current)
        self._own_url = broker_url

    def connection(self, hostname: str | None = None, *args: Any, **options: Any) -> Any:
        return super().connection(hostname or self._own_url, *args, **options)

    def connection_for_read(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_read(url or self._own_url, **options)

    def connection_for_write(self, url: str | None = None, **options: Any) -> Any:
        return super().connection_for_write(url or self._own_url, **options)
