"""A backup of the whole state of one data folder, taken while it is in use: the database as it was at one moment, and every
blob that its rows name. For PostgreSQL and S3 their own tools do it (docs/operations.md).

Blobs never change, so they are linked (or copied) first, then the database is copied by SQLite's own online backup, then
what came meanwhile is added. A blob that went between the copy and its link belongs to a row that was deleted: the copy is
taken again.
"""

import json
import os
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wbar import __version__
from wbar.transfers import sha256_of
from wbar_store.blobs import Blobs
from wbar_store.tables import REFERENCES

DATABASE, BLOBS, MANIFEST = "wbar.db", "blobs", "manifest.json"
TRIES = 10


class BackupFailed(Exception):
    """Raised with a sentence for the operator; the data folder is as it was."""


@dataclass(frozen=True)
class Manifest:
    """The content of a backup. bytes: of its blobs; database: the sha256 of the copy."""

    version: str
    blobs: int
    bytes: int
    database: str


def back_up(data: Path, target: Path) -> Manifest:
    """Write a backup of `data`, which may be in use, to the new folder `target`. Raises BackupFailed."""
    if not (data / DATABASE).is_file():
        raise BackupFailed(f"{data} holds no {DATABASE}: give the folder of `wbar up` as --data")
    _new_folder(target)
    source = data / BLOBS / "sha256"
    for path in source.glob("*/*"):
        _add(source, target / BLOBS / "sha256", path.name)
    for _ in range(TRIES):
        _copy_database(data / DATABASE, target / DATABASE)
        named = _named(target / DATABASE)
        missing = [sha256 for sha256 in named if not _add(source, target / BLOBS / "sha256", sha256)]
        if not missing:
            break
    else:
        raise BackupFailed(f"blob {missing[0]} is named by the database and not in {source}: `wbar gc` says more")
    for path in (target / BLOBS / "sha256").glob("*/*"):
        if path.name not in named:
            path.unlink()  # of a row that was deleted meanwhile
    size = sum((target / BLOBS / Blobs.path(sha256)).stat().st_size for sha256 in named)
    manifest = Manifest(__version__, len(named), size, sha256_of(target / DATABASE))
    (target / MANIFEST).write_text(json.dumps(vars(manifest), indent=2) + "\n")
    return manifest


def restore(source: Path, data: Path) -> Manifest:
    """Check a backup byte for byte, and make the new folder `data` of it. Raises BackupFailed; then there is no `data`."""
    try:
        manifest = Manifest(**json.loads((source / MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        raise BackupFailed(f"{source} is no finished backup: it has no readable {MANIFEST}") from None
    _check(_sha256(source / DATABASE), manifest.database, source / DATABASE)
    named = _named(source / DATABASE)
    if len(named) != manifest.blobs:
        raise BackupFailed(f"{source}: the database names {len(named)} blobs, {MANIFEST} {manifest.blobs}")
    for sha256 in named:
        path = source / BLOBS / Blobs.path(sha256)
        _check(_sha256(path), sha256, path)
    if data.exists():
        raise BackupFailed(f"{data} is there already: give a folder that is not")
    partial = data.with_name(f"{data.name}.partial")
    _new_folder(partial)
    try:
        for sha256 in named:
            # Copied, not linked: a damage in one of the two must not be a damage in both.
            to = partial / BLOBS / Blobs.path(sha256)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / BLOBS / Blobs.path(sha256), to)
        shutil.copyfile(source / DATABASE, partial / DATABASE)
        partial.rename(data)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise BackupFailed(f"{data} cannot be written ({error.strerror})") from None
    return manifest


def _named(database: Path) -> set[str]:
    """Return the digests of all blobs that rows name. The file is only read: nothing may be written where it lies."""
    opened = sqlite3.connect(f"file:{quote(str(database))}?mode=ro&immutable=1", uri=True)
    try:
        queries = (f"SELECT {one.name} FROM {one.table.name} WHERE {one.name} IS NOT NULL" for one in REFERENCES)  # noqa: S608  # our own names
        return {str(sha256) for query in queries for (sha256,) in opened.execute(query)}
    except sqlite3.Error as error:
        raise BackupFailed(f"{database} cannot be read ({error})") from None
    finally:
        opened.close()


def _sha256(path: Path) -> str:
    return sha256_of(path) if path.is_file() else "no file"


def _copy_database(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    reading, writing = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reading.backup(writing)
        # What is held belongs to writers of the other database, and what is marked is not here to be deleted.
        writing.execute("UPDATE blobs SET holds = 0, deleting = FALSE")
        # The parts of uploads are no blobs: what had arrived of an upload is not in a backup.
        writing.execute("DELETE FROM upload_parts")
        writing.execute("DELETE FROM resumable_uploads")
        writing.execute("DELETE FROM sessions")  # one that was ended after the backup must not come back with it
        writing.commit()
        writing.execute("PRAGMA journal_mode=DELETE")  # one file, without companions
    except sqlite3.Error as error:
        raise BackupFailed(f"{source} cannot be copied ({error})") from None
    finally:
        reading.close()
        writing.close()


def _add(source: Path, target: Path, sha256: str) -> bool:
    """Have the blob in the backup; False if it is not there any more."""
    to = target / sha256[:2] / sha256
    if to.exists():
        return True
    try:
        _link_or_copy(source / sha256[:2] / sha256, to)
    except FileNotFoundError:
        return False
    return True


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _new_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        raise BackupFailed(f"{path} is there already: give a folder that is not") from None
    except OSError as error:
        raise BackupFailed(f"{path} cannot be made ({error.strerror})") from None


def _check(found: str, expected: str, path: Path) -> None:
    if found != expected:
        raise BackupFailed(f"{path} is damaged: sha256 {found}, {expected} expected")
