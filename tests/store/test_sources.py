"""A named dataset is below an allowed root, by its names and on the disk, or it is not read."""

import os
from pathlib import Path

import pytest

from wbar.errors import SourceUnavailable
from wbar_store.sources import Location, locate, take_file

ROOTS = ["file:///allowed/", "s3://bucket/sets"]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("file:///allowed/x", ("x",)),
        ("file:///allowed/x/y.tar", ("x", "y.tar")),
        ("file:///allowed/a%20b/%C3%BC", ("a b", "ü")),
        ("s3://bucket/sets/x.tar", ("x.tar",)),
    ],
)
def test_a_place_below_a_root_is_found(source: str, parts: tuple[str, ...]) -> None:
    found = locate(source, ROOTS)
    assert found is not None
    assert found.parts == parts
    if found.scheme == "s3":
        assert found.url == source


@pytest.mark.parametrize(
    "source",
    ["", "file://", "file:///", "file:///allowed", "file:///allowed/", "file:///allowedx/y", "file:///other/x", "s3://bucket",
     "s3://bucket/sets", "s3://BUCKET/sets/x", "http://bucket/sets/x", "builtin:digits", "FILE:///allowed/x",
     "file:///allowed/.\t./x", "file:///allowed/x\x00", "file:///allowed/\ud800", "file:///allowed/%00", "file:///allowed/%09"],
)  # fmt: skip
def test_no_other_place_is(source: str) -> None:
    assert locate(source, ROOTS) is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file and a folder, beside a secret; links lead out of it."""
    root = tmp_path / "root"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "file.tar").write_bytes(b"content")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file.tar").write_bytes(b"secret")
    (root / "link.tar").symlink_to(tmp_path / "secret" / "file.tar")
    (root / "dangling.tar").symlink_to(tmp_path / "secret" / "none.tar")
    (root / "linked").symlink_to(tmp_path / "secret")
    os.mkfifo(root / "pipe.tar")
    return root


def place(root: Path, *parts: str) -> Location:
    return Location("file", root.parts[1:], parts)


def test_a_file_is_taken_and_stays_what_it_was(root: Path, tmp_path: Path) -> None:
    taken = take_file(place(root, "folder", "file.tar"), tmp_path / "taken")
    (root / "folder" / "file.tar").unlink()
    (root / "folder" / "file.tar").symlink_to(tmp_path / "secret" / "file.tar")
    assert taken.read_bytes() == b"content"


def test_a_folder_is_read_where_it_is(root: Path, tmp_path: Path) -> None:
    assert take_file(place(root, "folder"), tmp_path / "taken") == root / "folder"


def test_the_root_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    assert take_file(place(tmp_path / "alias", "folder"), tmp_path / "taken") == root / "folder"


@pytest.mark.parametrize(
    "parts", [("link.tar",), ("dangling.tar",), ("linked", "file.tar"), ("linked", "none.tar"), ("linked",), ("none.tar",),
              ("pipe.tar",), ("folder", "file.tar", "deeper")],
)  # fmt: skip
def test_what_is_behind_a_link_is_not_told_from_what_is_not_there(
    root: Path, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    location = place(root, *parts)
    with pytest.raises(SourceUnavailable) as refused:
        take_file(location, tmp_path / "taken")
    with pytest.raises(SourceUnavailable) as absent:
        take_file(place(root, "absent"), tmp_path / "taken")
    said = refused.value.detail.replace("/".join(parts), "absent")
    assert said == absent.value.detail
    assert not (tmp_path / "taken").exists()
