"""The files of a checkpoint take their names together: who reads meanwhile finds the old one, the new one, or none.

A checkpoint `model` is `model.safetensors`, or `model.safetensors.index.json` with the shards that it names. Readers take the
single file where there is one (`from_pretrained` does), else the index; so one rename decides which checkpoint is read, and
everything else happens before it, and can be undone, or after it, to files that are read no more.
"""

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

INDEX = ".safetensors.index.json"
SUFFIX = ".safetensors"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors")


def index_of(out: Path) -> Path:
    """Return where the index lies of the checkpoint whose single file would be `out`."""
    return out.with_name(out.name.removesuffix(SUFFIX) + INDEX)


def shard_of(out: Path, number: int, count: int) -> Path:
    """Return where shard `number` (from 1) of `count` lies of the checkpoint whose single file would be `out`."""
    return out.with_name(f"{out.name.removesuffix(SUFFIX)}-{number:05}-of-{count:05}{SUFFIX}")


def shards_at(out: Path) -> set[Path]:
    """Return the files in the folder of `out` that have names of its shards, of whatever count."""
    stem = out.name.removesuffix(SUFFIX)
    return {
        path
        for path in out.parent.iterdir()
        if path.name.startswith(stem) and _SHARD.fullmatch(path.name.removeprefix(stem))
    }


def replace_checkpoint(written: Sequence[tuple[Path, Path]], out: Path, scratch: Path) -> None:
    """Give new files their names, and take away what the old checkpoint of that name had beyond them.

    written: (where it is now, its own name) of each file, synced: `out` alone, or shards and last their index.
    scratch: a folder on the same disk that is deleted later; the old files go there.

    A process that is killed leaves the old checkpoint or the new one to be read as above, perhaps beside files of the other
    that `open_checkpoint` refuses to choose from; or no index, where shards of the same names are replaced.

    Raises OSError. Everything is then as it was, unless only old files could not be taken away: the message names them.
    """
    for _, final in written:
        if final.is_dir():
            raise IsADirectoryError(f"{final}: is a folder")
    attic = scratch / "replaced"
    attic.mkdir()
    names = {final for _, final in written}
    if out in names:
        os.replace(*written[-1])
    else:
        _place_shards(written, out, attic)
    sync_folder(out.parent)
    for path in (index_of(out), *sorted(shards_at(out))):
        if path not in names and path.is_file():
            try:
                os.rename(path, attic / path.name)
            except OSError as error:
                raise OSError(f"{path}: belongs to the checkpoint that was replaced, and stays: {error}") from error


def _place_shards(written: Sequence[tuple[Path, Path]], out: Path, attic: Path) -> None:
    """The rename that decides is the last: of the single file away, or of the index into its place."""
    *shards, (new_index, index) = written
    with ExitStack() as undo:

        def move(source: Path, target: Path) -> None:
            os.rename(source, target)
            undo.callback(os.rename, target, source)

        taken = [final for _, final in shards if final.exists()]
        if index.exists() and (taken or out.exists()):
            move(index, attic / index.name)  # it would describe shards of two checkpoints
        for final in taken:
            move(final, attic / final.name)
        for path, final in shards:
            move(path, final)
        if out.exists():
            move(new_index, index)
            sync_folder(out.parent)
            os.rename(out, attic / out.name)
        else:
            os.replace(new_index, index)
        undo.pop_all()


def sync_folder(folder: Path) -> None:
    """Wait until what was renamed in the folder stays so when the power fails, before anything is deleted for it."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
