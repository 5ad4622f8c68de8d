"""Datasets that are named and not uploaded: `file://…` and `s3://…` below the roots that the operator allows.

A source is compared with the roots as a list of plain names, after one decoding and without the file system: the API says
nothing about what exists. The worker then walks from the root to the file name by name, and no name may be a link.
"""

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from wbar.errors import SourceUnavailable

_ODD = set('\\?#%*[]{}|"<>^`')  # with a meaning in URLs or in object stores, and in no name that we need


@dataclass(frozen=True)
class Location:
    """A place below an allowed root. root, parts: names from the top, none of them empty, `.` or `..`."""

    scheme: Literal["file", "s3"]
    root: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def url(self) -> str:
        """The address of an S3 object."""
        return "s3://" + "/".join(self.root + self.parts)


def locate(source: str, roots: list[str]) -> Location | None:
    """Return the place that a source names; None where it is not below an allowed root, or is not written plainly."""
    scheme, names = _split(source)
    if names is None or scheme not in ("file", "s3"):
        return None
    for root in roots:
        root_scheme, root_names = _split(root.rstrip("/"))
        if root_scheme != scheme or root_names is None:
            continue
        if names[: len(root_names)] == root_names and len(names) > len(root_names):
            return Location(scheme, root_names, names[len(root_names) :])  # type: ignore[arg-type]  # compared above
    return None


def _split(url: str) -> tuple[str, tuple[str, ...] | None]:
    """Return the scheme and the names of a URL's path (of S3, the bucket first); None for one that is not written plainly."""
    scheme, separator, rest = url.partition("://")
    plain = unquote(rest)
    if scheme == "file":
        if not plain.startswith("/"):
            return scheme, None  # a host, or nothing
        plain = plain[1:]
    names = tuple(plain.split("/"))
    odd = not separator or not plain.isprintable() or bool(set(plain) & _ODD)
    if odd or any(name in ("", ".", "..") for name in names):
        return scheme, None
    return scheme, names


def take_file(location: Location, target: Path) -> Path:
    """Return the folder that a `file` location names, or a link or copy at `target` of the file that it names.

    No name below the root may be a link. Raises SourceUnavailable, with the same words whatever the reason.
    """
    root = Path("/", *location.root)
    try:
        descriptor = _open(root, location.parts)
    except OSError:
        descriptor = None
    if descriptor is None:
        raise SourceUnavailable(
            f"{root.joinpath(*location.parts).as_uri()} cannot be read: it must be a plain file or folder, which the worker "
            "may read, below an allowed root and not behind a link"
        )
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            return root.resolve().joinpath(*location.parts)
        _link_or_copy(descriptor, target)
    finally:
        os.close(descriptor)
    return target


def _open(root: Path, names: tuple[str, ...]) -> int | None:
    """Open what the names lead to, each one relative to the folder before it; None for what is no file and no folder."""
    # The root itself is the operator's, and may be a link.
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        try:
            # NONBLOCK: a pipe must not make us wait for its writer.
            deeper = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
        finally:
            os.close(here)
        here = deeper
    mode = os.fstat(here).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return here
    os.close(here)
    return None


def _link_or_copy(descriptor: int, target: Path) -> None:
    """Have the open file under a name of our own, whatever happens to its name meanwhile."""
    try:
        os.link(f"/proc/self/fd/{descriptor}", target, follow_symlinks=True)
    except OSError:  # another file system, or no /proc
        with open(descriptor, "rb", closefd=False) as file, open(target, "wb") as copy:
            shutil.copyfileobj(file, copy, 1024 * 1024)
