"""Archives of real images are packed as they are; what is wrong with one is named."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from wbar.errors import (
    BrokenImage,
    ContentTooLarge,
    InvalidArchive,
    NoImages,
    Rejected,
    TooFewClasses,
    UnknownSource,
    UnsafePath,
)
from wbar_training.data.packed import Packed, load_split
from wbar_training.uploads.dataset_archives import pack_archive, pack_builtin, pack_folder
from wbar_training.uploads.held_out import stratified
from wbar_training.uploads.limits import UploadLimits

DIGITS = load_digits()


def png(index: int, size: tuple[int, int] | None = None, mode: str = "L") -> bytes:
    image = Image.fromarray((DIGITS.images[index] * 15.9).astype(np.uint8)).convert(mode)
    out = io.BytesIO()
    (image.resize(size) if size else image).save(out, "PNG")
    return out.getvalue()


def files(train: int = 4, val: int = 2, classes: str = "012") -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for label in classes:
        chosen = np.flatnonzero(DIGITS.target == int(label))[: train + val]
        for position, index in enumerate(chosen):
            split = "train" if position < train else "val"
            members[f"{split}/{label}/{index}.png"] = png(int(index))
    return members


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: dict[str, bytes], mode: str) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.zst", "folder", "inside a folder"])
def test_every_kind_of_archive_gives_the_same_images(tmp_path: Path, kind: str) -> None:
    content, path, out = files(), tmp_path / "archive", tmp_path / "out"
    if kind == "zip":
        packed = pack_archive(write_zip(path, content), out, UploadLimits())
    elif kind == "folder":
        for name, data in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        packed = pack_folder(path, out, UploadLimits())
    elif kind == "inside a folder":
        packed = pack_archive(
            write_zip(path, {f"digits/{name}": data for name, data in content.items()}), out, UploadLimits()
        )
    else:
        write_tar(path, content, "w:gz" if kind == "tar.gz" else "w")
        if kind == "tar.zst":
            import zstandard

            path.write_bytes(zstandard.compress(path.read_bytes()))
        packed = pack_archive(path, out, UploadLimits())
    assert (packed.classes, packed.channels, packed.height, packed.width) == (["0", "1", "2"], 1, 8, 8)
    assert packed.images == {"train": 12, "val": 6}
    assert Packed.read(out) == packed
    train = load_split(out, "train", (8, 8), None)
    index = int(sorted(name for name in content if name.startswith("train/0/"))[0].split("/")[-1][:-4])
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert torch.equal(train.images[0, 0], torch.from_numpy((DIGITS.images[index] * 15.9).astype(np.uint8)))


def test_without_val_a_fifth_of_every_class_is_held_out_and_said(tmp_path: Path) -> None:
    content = {name.replace("val/", "train/"): data for name, data in files(train=8, val=2).items()}
    path = write_zip(tmp_path / "a", content)
    first = pack_archive(path, tmp_path / "1", UploadLimits())
    second = pack_archive(path, tmp_path / "2", UploadLimits())
    assert first.images == {"train": 24, "val": 6}
    assert first.held_out == second.held_out
    assert first.held_out is not None
    assert len(first.held_out) == 6
    assert "may have been trained on them" in first.warnings[0]
    assert load_split(tmp_path / "1", "val", (8, 8), None).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_of_many_sizes_are_kept_encoded_and_resized_for_the_job(tmp_path: Path) -> None:
    content = files()
    content["train/0/large.png"] = png(0, (20, 24), "RGB")
    packed = pack_archive(write_zip(tmp_path / "a", content), tmp_path / "out", UploadLimits())
    assert (packed.channels, packed.height, packed.width) == (3, 8, 8)
    train = load_split(tmp_path / "out", "train", (12, 10), None)
    assert tuple(train.images.shape) == (13, 3, 12, 10)


def test_labels_follow_the_checkpoints_class_order(tmp_path: Path) -> None:
    pack_archive(write_zip(tmp_path / "a", files()), tmp_path / "out", UploadLimits())
    train = load_split(tmp_path / "out", "train", (8, 8), [2, 0, 1])
    assert train.labels.tolist() == [2] * 4 + [0] * 4 + [1] * 4


def test_sixteen_bit_images_keep_their_contrast(tmp_path: Path) -> None:
    content = files()
    out = io.BytesIO()
    Image.fromarray((DIGITS.images[0] * 4095).astype(np.uint16)).save(out, "PNG")
    content["train/0/deep.png"] = out.getvalue()
    pack_archive(write_zip(tmp_path / "a", content), tmp_path / "out", UploadLimits())
    labels_of_class_0 = load_split(tmp_path / "out", "train", (8, 8), None)
    expected = torch.from_numpy((DIGITS.images[0] * 4095).astype(np.uint16).astype(np.int64) >> 8).to(torch.uint8)
    assert any(torch.equal(image[0], expected) for image in labels_of_class_0.images)


def truncated_image(content: dict[str, bytes]) -> dict[str, bytes]:
    name = next(iter(content))
    return content | {name: content[name][:60]}


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (files(classes="0"), TooFewClasses, "single class, '0'"),
        ({"readme.txt": b"hello"}, NoImages, "no images"),
        ({"val/0/1.png": png(0)}, NoImages, "no images"),
        (files() | {"train/0/bad.png": b"not an image"}, BrokenImage, "'train/0/bad.png' cannot be decoded"),
        (truncated_image(files()), BrokenImage, "cannot be decoded"),
        (files() | {"../evil.png": png(0)}, UnsafePath, r"'../evil.png' points outside"),
        (files() | {"/etc/evil.png": png(0)}, UnsafePath, "points outside"),
        (files() | {"train\\..\\..\\evil.png": png(0)}, UnsafePath, "points outside"),
        (files() | {"val/9/x.png": png(9)}, InvalidArchive, r"val/ has classes that train/ does not: \['9'\]"),
        (files() | {"train/7/x.png": png(7)}, TooFewClasses, "single image in train/: 7: 1"),
    ],
)
def test_what_is_wrong_with_an_archive_is_named(
    tmp_path: Path, content: dict[str, bytes], error: type[Rejected], message: str
) -> None:
    with pytest.raises(error, match=message):
        pack_archive(write_zip(tmp_path / "a", content), tmp_path / "out", UploadLimits())
    with pytest.raises(error, match=message):
        pack_archive(write_tar(tmp_path / "b", content, "w:gz"), tmp_path / "out", UploadLimits())


def test_other_formats_under_an_images_name_are_not_decoded(tmp_path: Path) -> None:
    """Pillow would hand an EPS to Ghostscript; only JPEG, PNG and WebP are opened, whatever the suffix says."""
    content = files()
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(out, "EPS")
    content["train/0/x.png"] = out.getvalue()
    with pytest.raises(BrokenImage, match=r"x\.png"):
        pack_archive(write_zip(tmp_path / "a", content), tmp_path / "out", UploadLimits())


def test_a_damaged_compressed_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/0/a.png", png(0) * 50)
    damaged = bytearray((tmp_path / "a").read_bytes())
    damaged[60:90] = bytes(30)
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(InvalidArchive):
        pack_archive(tmp_path / "a", tmp_path / "out", UploadLimits())


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t", "w") as archive:
        entry = tarfile.TarInfo("train/0/link.png")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(entry)
    with pytest.raises(UnsafePath, match="is a link"):
        pack_archive(tmp_path / "t", tmp_path / "out", UploadLimits())
    with zipfile.ZipFile(tmp_path / "z", "w") as zipped:
        info = zipfile.ZipInfo("train/0/link.png")
        info.external_attr = 0o120777 << 16
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafePath, match="is a link"):
        pack_archive(tmp_path / "z", tmp_path / "out", UploadLimits())


@pytest.mark.parametrize("limits", [UploadLimits(bytes=1000), UploadLimits(files=5)])
def test_an_archive_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path, limits: UploadLimits) -> None:
    for path in (write_zip(tmp_path / "a", files()), write_tar(tmp_path / "b", files(), "w:gz")):
        with pytest.raises(ContentTooLarge, match="limit"):
            pack_archive(path, tmp_path / "out", limits)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04rest", b"\x1f\x8b\x08garbage", b"\x28\xb5\x2f\xfdgarbage"]
)
def test_a_file_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(Rejected):
        pack_archive(tmp_path / "a", tmp_path / "out", UploadLimits())


def test_a_truncated_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a", files(), "w:gz")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InvalidArchive, match="cut off"):
        pack_archive(path, tmp_path / "out", UploadLimits())


def test_builtin_digits_are_the_real_scans(tmp_path: Path) -> None:
    packed = pack_builtin("digits", tmp_path / "out", None)
    assert packed.images == {"train": 1438, "val": 359}
    assert (packed.channels, packed.height, packed.width) == (1, 8, 8)
    again = pack_builtin("digits", tmp_path / "again", 100)
    assert again.images["val"] == 359
    assert 95 <= again.images["train"] <= 105
    with pytest.raises(UnknownSource, match="builtin:cifar"):
        pack_builtin("cifar", tmp_path / "out", None)


def test_fashion_mnist_is_read_from_its_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file format of the Debian package and of torchvision's folder, plain and gzipped, on digits."""
    images = (DIGITS.images[:60] * 15.9).astype(np.uint8)
    labels = DIGITS.target[:60].astype(np.uint8)
    for kind, pack in (("train", gzip.compress), ("t10k", bytes)):
        suffix = ".gz" if pack is gzip.compress else ""
        head = bytes([0, 0, 8, 3]) + np.array([60, 8, 8], ">u4").tobytes()
        (tmp_path / f"{kind}-images-idx3-ubyte{suffix}").write_bytes(pack(head + images.tobytes()))
        head = bytes([0, 0, 8, 1]) + np.array([60], ">u4").tobytes()
        (tmp_path / f"{kind}-labels-idx1-ubyte{suffix}").write_bytes(pack(head + labels.tobytes()))
    monkeypatch.setattr("wbar_training.uploads.builtin_images.FASHION_FOLDERS", (tmp_path,))
    packed = pack_builtin("fashion-mnist", tmp_path / "out", None)
    assert packed.images == {"train": 60, "val": 60}
    assert packed.classes[9] == "Ankle boot"
    train = load_split(tmp_path / "out", "train", (8, 8), None)
    assert torch.equal(train.images[:, 0], torch.from_numpy(images))
    assert train.labels.tolist() == labels.tolist()


def test_stratified_takes_from_every_class_and_leaves_some() -> None:
    labels = ["a"] * 10 + ["b"] * 3 + ["c"] * 2
    chosen = stratified(labels, 0.2, 0)
    assert [labels[i] for i in chosen] == ["a", "a", "b", "c"]
