"""The names inside an archive or a folder: which are refused, which two are one, and which may name a class.

An archive is made on one system and read on others. Two class folders whose names differ only in case, or in how an
accent is encoded, are one folder on a Mac and two here: images would move between classes without a word.
"""

import unicodedata
from pathlib import PurePosixPath

from wbar.errors import InvalidArchive, UnsafePath
from wbar_averaging.quoting import quoted

MAX_NAME = 255  # characters of one folder or file: what file systems take
MAX_DEPTH = 64


class Names:
    """All names of one archive, checked as they come. Memory: one text for each."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: dict[str, str] = {"": ""}  # by how they compare: how they were written first
        self._last = ""

    def add(self, name: str, is_folder: bool = False) -> str:
        """Take the next name, and return it with plain slashes. Raises UnsafePath or InvalidArchive."""
        plain = name.replace("\\", "/")
        if plain.startswith("/") or ".." in plain.split("/") or "\0" in plain or plain[1:3] == ":/":
            raise UnsafePath(f"{quoted(name)} points outside the archive")
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        longest = max(map(len, parts), default=0)
        if longest > MAX_NAME:
            raise InvalidArchive(
                f"{quoted(name)} has a part of {longest} characters, more than the limit of {MAX_NAME}"
            )
        if len(parts) > MAX_DEPTH:
            raise InvalidArchive(f"{quoted(name)} lies {len(parts)} folders deep, more than the limit of {MAX_DEPTH}")
        self._enter(parts if is_folder else parts[:-1])
        if is_folder or not parts:
            return "/".join(parts)
        path = "/".join(parts)
        folded = _folded(path)
        if folded in self._files or folded in self._folders:
            raise InvalidArchive(
                f"{quoted(name)} is in the archive twice (names that differ only in case or in the encoding of accents are one)"
            )
        self._files.add(folded)
        return path

    def _enter(self, folders: list[str]) -> None:
        path = "/".join(folders)
        if path == self._last:
            return
        for depth in range(1, len(folders) + 1):
            spelled = "/".join(folders[:depth])
            first = self._folders.setdefault(_folded(spelled), spelled)
            if first != spelled:
                raise InvalidArchive(
                    f"the folders {quoted(first)} and {quoted(spelled)} differ only in case or in the encoding of accents: on "
                    "many systems they are one folder; rename one, or put their files together"
                )
            if _folded(spelled) in self._files:
                raise InvalidArchive(f"{quoted(spelled)} is a file and a folder")
        self._last = path


def _folded(path: str) -> str:
    # Twice, as Unicode's canonical caseless matching does (D145): folding may undo the normal form.
    return (
        path.casefold()
        if path.isascii()
        else unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
    )


def is_hidden(name: str) -> bool:
    """Return whether a file is hidden or a system's own: `.DS_Store`, `__MACOSX/…`."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def check_class_names(classes: list[str], where: str) -> None:
    """Raise InvalidArchive for a class name that cannot be written down, or that runs in a spreadsheet.

    where: the text that introduces the name, such as `the folder`.
    """
    for name in classes:
        unprintable = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs")), None)
        if unprintable is not None:
            kind = "half of a surrogate pair (the name is not UTF-8)" if unicodedata.category(unprintable) == "Cs" else (
                "a control character")  # fmt: skip
            fault = f"holds {quoted(unprintable)}, {kind}"
        elif not name.strip():
            fault = "is blank"
        elif name.lstrip().startswith("="):
            fault = "begins with =, and a spreadsheet would compute it"
        elif len(name) > MAX_NAME:
            fault = f"has {len(name)} characters, more than the limit of {MAX_NAME}"
        else:
            continue
        raise InvalidArchive(f"{where} {quoted(name)} cannot name a class: it {fault}. Rename it")
