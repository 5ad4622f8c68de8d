"""The configuration file in which clients of `wbar up` find its address and key.

The client's own file, where that is free or of the same service. One that leads to another service is somebody's, and stays:
the file then lies in the data folder, and whoever wants this service names it by WBAR_CONFIG.
"""

from dataclasses import dataclass
from pathlib import Path

from wbar import config
from wbar.config import Config
from wbar_store.keys import is_plausible
from wbar_store.store import Store

IN_DATA = "config.toml"


@dataclass(frozen=True)
class Written:
    """The file that was written, and what the user is to know about it, line by line."""

    path: Path
    api_key: str
    words: list[str]


def write(data: Path, url: str, store: Store) -> Written:
    """Write address and key where clients find them; the key is that of the file, where it opens this service.

    data: the folder of this service; url: its address. Raises ValueError for a file that is not TOML.
    """
    target, found, words = config.path(), config.read(), list[str]()
    if not _is_ours(found, data, url, store):
        whose = f"{found.url}" + (f" (data in {found.data})" if found.data else "")
        target, own = data / IN_DATA, config.read(data / IN_DATA)
        words.append(f"{config.path()} leads to {whose}, and stays as it is")
        words.append(f"for this service: export WBAR_CONFIG={target}")
        found = own
    elif found.url not in (None, url):
        words.append(f"it led to {found.url} before")
    key = found.api_key
    if key is None or store.keys.valid(key) is None:
        # Only a fresh folder takes a key over that it does not know: elsewhere it was revoked, or has expired.
        known = key if key and is_plausible(key) and store.keys.is_empty() else None
        if key and known is None:
            words.append("the API key that was there opens nothing here: it is replaced")
        key = store.keys.create("created by wbar up", key=known).key
    config.write(target, url, key, data)
    return Written(target, key, words)


def _is_ours(found: Config, data: Path, url: str, store: Store) -> bool:
    """Return whether a file may be written: it names no service, or this one."""
    if found.url is None or found.data == str(data) or (found.data is not None and not Path(found.data).exists()):
        return True
    if found.api_key is not None and store.keys.valid(found.api_key) is not None:
        return True  # the folder was moved, or restored from a backup
    return found.data is None and found.url == url
