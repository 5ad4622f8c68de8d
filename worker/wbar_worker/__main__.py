"""`python -m wbar_worker train|ingest|sweep`: one process of the worker side.

Started as a module, not as a script: multiprocessing then has no main module to import again in every attempt.
"""

import signal
import sys
import threading

from wbar_store import logs
from wbar_store.process_memory import close_memory
from wbar_store.store import Store
from wbar_worker.settings import WorkerSettings
from wbar_worker.signing import CannotSign, check
from wbar_worker.sweep import Sweeper
from wbar_worker.webhook_sender import WebhookSender


def main(kind: str) -> None:
    """Run a process of this kind (train, ingest, sweep) until SIGTERM or SIGINT."""
    logs.configure(kind)
    close_memory()
    settings = WorkerSettings()
    if kind == "sweep":
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        store = Store.open(settings)
        # Beside the sweeper, not in it: a receiver that does not answer must not keep lost jobs waiting.
        sender = threading.Thread(target=WebhookSender(store, settings).run, args=(stop,), name="webhooks")
        sender.start()
        try:
            Sweeper(store, settings).run(stop)
        finally:
            stop.set()
            sender.join()
            store.close()
        return
    if kind == "train" and settings.signing_key is not None:
        try:
            check(settings.signing_key)
        except CannotSign as error:
            sys.exit(f"the worker does not start: {error}")
    from wbar_worker.app import serve

    serve(settings, "ingest" if kind == "ingest" else "train")


if __name__ == "__main__":
    main(sys.argv[1])
