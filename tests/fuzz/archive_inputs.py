"""Dataset archives: names, headers, sizes, ends and nesting; images; label tables."""

import gzip
import io
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import zstandard
from PIL import Image

from tests.fuzz.inputs import BASES, TABLE, Input, Source, labelled, pictures, pngs, tarred, zipped
from tests.fuzz.pytorch_inputs import DIRECTORY, places_of
from tests.fuzz.tar_headers import HEADERS, header

# Tar archives.


def _raw_tar(members: list[tuple[str, bytes]], end: bytes = bytes(1024)) -> bytes:
    return b"".join(header(name, size=len(data)) + data + bytes(-len(data) % 512) for name, data in members) + end


def _pack(source: Source, tar: bytes) -> bytes:
    return source.draws.choice((tar, gzip.compress(tar, 1), zstandard.compress(tar)))


def _header(source: Source) -> bytes:
    """A refused header before, between or after valid members."""
    evil = HEADERS[source.draws.choice(sorted(HEADERS))][0]
    members = list(pngs().items())
    at = source.draws.randrange(len(members) + 1)
    return _pack(source, _raw_tar(members[:at], b"") + evil + _raw_tar(members[at:]))


def _end(source: Source) -> bytes:
    body = _raw_tar(list(pngs().items()), b"")
    return _pack(
        source,
        body + source.draws.choice((b"", bytes(511), bytes(512), bytes(512) + b"x" * 512, bytes(1024) + b"x",
        bytes(1023),
                                    bytes(5000) + b"\1", bytes(512) + _raw_tar(list(pngs().items())[:1]))),
    )  # fmt: skip


def _compressed_end(source: Source) -> bytes:
    tar = tarred(pngs())
    gz = gzip.compress(tar, 1)
    zst = zstandard.ZstdCompressor(write_checksum=True).compress(tar)
    cut = source.draws.randrange(1, 200)
    return source.draws.choice(
        (gz[:-cut], zst[:-cut], gz[:-8] + source.draws.randbytes(8), gz[:-4] + bytes(4),
        zst[:-4] + source.draws.randbytes(4),
         gz + source.draws.randbytes(cut), zst + source.draws.randbytes(cut), gz + gzip.compress(b"x"),
         zst + zstandard.compress(b"x"),
         gzip.compress(_raw_tar(list(pngs().items()))[: -cut * 60], 1), gzip.compress(gz), zstandard.compress(zst))
    )  # fmt: skip


def _endless(source: Source) -> bytes:
    zeros = bytes(64 * 2**20)
    stream = zlib.compressobj(9, wbits=31)
    data = stream.compress(tarred(pngs()))
    for _ in range(6):
        data += stream.compress(zeros)
    return data + stream.flush()


NAMES = (
    "../evil.png", "/etc/evil.png", "train/../../evil.png", "train\\..\\..\\evil.png", "C:/evil.png",
    "train/a/" + "x" * 300 + ".png",
    "a/" * 100 + "x.png", "train/A/x.png", "train/a/0.PNG", "./train//a/0.png", "train/a", "train/a/0.png",
    "train/a\x1b[2J/x.png",
    "train/ /x.png", "train/=1+1/x.png", "train/a\n/x.png", "train/\udce9/x.png", "train/a/0.png/x.png",
    "train/\x7f/x.png",
    "..\\evil.png", "train/a/../0.png",
)  # fmt: skip


def _names(source: Source) -> bytes:
    members = list(pngs().items())
    if source.draws.random() < 0.1:
        members += [
            (f"train/{unicodedata.normalize(form, 'é')}/{i}.png", members[0][1])
            for form in ("NFC", "NFD")
            for i in "01"
        ]
    else:
        name = source.draws.choice(NAMES)
        # Two of a kind, so that not the single image of a class is what is refused.
        extra = [(name, members[0][1])] + ([(name.replace("x.png", "y.png"), members[0][1])] if "x.png" in name else [])
        members += extra
    source.draws.shuffle(members)
    if any(len(name) > 100 for name, _ in members) or source.draws.random() < 0.5:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, data in members:
                info = zipfile.ZipInfo("x")
                info.filename = name.encode("utf-8", "replace").decode() if "\udce9" not in name else "train/\x01/x.png"
                archive.writestr(info, data)
        return out.getvalue()
    return _pack(source, _raw_tar(members))


# Zip archives.


def _directory(source: Source) -> bytes:
    data = bytearray(BASES[source.draws.choice(("zip", "zip stored"))][2]())
    if source.draws.random() < 0.7:
        at = source.draws.choice(places_of(bytes(data), b"PK\1\2")) + DIRECTORY[source.draws.choice(sorted(DIRECTORY))]
    else:
        at = data.rindex(b"PK\5\6") + source.draws.choice((4, 6, 8, 10, 12, 16, 20))
    data[at] = (data[at] + source.draws.randrange(1, 256)) % 256
    return bytes(data)


def _modes(source: Source) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in pngs().items():
            archive.writestr(name, data)
        info = zipfile.ZipInfo(source.draws.choice(("train/a/link.png", "notes", "val/b/x")))
        info.external_attr = source.draws.choice((0o120777, 0o020666, 0o060666, 0o010666, 0o140777)) << 16
        archive.writestr(info, "/etc/passwd")
    return out.getvalue()


def _zip_bomb(source: Source) -> bytes:
    size = source.draws.choice((300, 400)) * 2**20
    stream = zlib.compressobj(9, wbits=-15)
    packed = b"".join(stream.compress(bytes(2**20)) for _ in range(size // 2**20)) + stream.flush()
    if source.draws.random() < 0.5:
        return zipped({"train/a/x.png": bytes(size)})
    data = bytearray(zipped({"train/a/x.png": packed}, zipfile.ZIP_STORED))
    for at in (8, data.index(b"PK\1\2") + 10):
        data[at] = 8  # the packed bytes are called deflated, and their size stays a lie
    return bytes(data)


def _odd_methods(source: Source) -> bytes:
    return zipped(pngs(), source.draws.choice((zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))


def _layout(source: Source) -> bytes:
    """Well-formed archives that are no dataset."""
    one = pngs()["train/a/0.png"]
    inner = source.draws.choice((zipped, tarred))(pngs())
    members = source.draws.choice(
        ({}, {"readme.txt": b"x"}, {"val/a/1.png": one}, {"train/a/1.png": one, "train/a/2.png": one},
        {"inner.zip": inner},
         {"train/a/inner.zip": inner, "train/b/inner.tar": inner}, {"train/1.png": one, "train/2.png": one},
         {"a/b/c/train/a/1.png": one}, {".train/a/1.png": one}, {"__MACOSX/train/a/1.png": one},
         pngs() | {"val/c/1.png": one},
         pngs() | {"train/c/1.png": one})
    )  # fmt: skip
    return source.draws.choice((zipped, tarred))(members)


# Images and label tables, in archives that are right.


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", head), *chunks, (b"IEND", b"")):
        data += len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")
    return data


def _other_format(kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(out, kind)
    return out.getvalue()


@cache
def _zeros() -> bytes:
    return zlib.compress(bytes(100 * 2**20), 9)


def _image(source: Source) -> bytes:
    whole = pictures()[source.draws.choice(sorted(pictures()))]
    jpeg = pictures()["train/a/1.jpeg"]
    frame = jpeg.index(b"\xff\xc0") + 5
    zeros = _zeros()
    evil = source.draws.choice(
        (b"", b"no image", whole[: source.draws.randrange(1, len(whole) * 3 // 4)], png(60_000, 60_000, (b"IDAT",
        b"")),
         png(2**31 - 1, 2**31 - 1), png(0, 5), png(100_000, 1, (b"IDAT", zlib.compress(bytes(100_001)))),
         png(8, 8, (b"zTXt", b"a\0\0" + zeros), (b"IDAT", zlib.compress(bytes(72)))),
         png(8, 8, (b"iCCP", b"a\0\0" + zeros), (b"IDAT", zlib.compress(bytes(30)))), png(8, 8), png(8, 8,
         (b"IDAT", b"garbage")),
         png(9000, 9000, (b"IDAT", zlib.compress(bytes(100)))), jpeg[:frame] + b"\xff\xff\xff\xff" + jpeg[frame + 4 :],
         jpeg[:2] + source.draws.randbytes(200), _other_format(source.draws.choice(("EPS", "GIF", "BMP", "TIFF",
         "ICO", "PPM", "PDF"))),
         b"RIFF\xff\xff\xff\xffWEBPVP8X" + bytes(30), b"\x89PNG\r\n\x1a\n" + source.draws.randbytes(300))
    )  # fmt: skip
    name = source.draws.choice(("train/a/9.png", "train/b/9.jpg", "val/a/9.webp"))
    return source.draws.choice((zipped, tarred))(pictures() | {name: evil})


def _cell(source: Source) -> bytes:
    return source.draws.choice(
        (
            b"2",
            b"",
            b"-1",
            b"1.0",
            b"yes",
            b"NaN",
            b"\x00",
            b"\xff",
            b"x" * 200_000,
            b'"1',
            b"1,1",
            b"=1",
            b"1e0",
            "١".encode(),
        )
    )


def _table(source: Source) -> bytes:
    header_line, *lines = TABLE.splitlines()
    table = source.draws.choice(
        (b"", b"\n", header_line, b"image\n", TABLE.replace(b"image", b"picture"), TABLE.replace(b"green", b"red"),
         TABLE + lines[0] + b"\n", TABLE.replace(b",1,1", b"," + _cell(source) + b",1"),
         TABLE.replace(lines[1] + b"\n", b""),
         TABLE + b"train/none.png,1,0\n", TABLE.decode().encode("utf-16"),
         TABLE.replace(b"green", b"=1+1"), TABLE.replace(b"green", b" "), TABLE.replace(b"green", b"\x1b[2J"),
         TABLE.replace(b"green", b"\xff\xfe"), TABLE.replace(b"green", b"x" * 300), TABLE.replace(b"green", b"a\x00b"),
         TABLE.replace(b"green", b'"gre\nen"'),
         b"image,labels\n" + b"\n".join(line.split(b",")[0] + b",=x" for line in lines),
         b"image,labels\n" + b"\n".join(line.split(b",")[0] + b",one" for line in lines),
         b"image," + b",".join(b"c%d" % i for i in range(10_000)),
         source.draws.randbytes(300), b'"' * 100_001, TABLE.replace(b",", b";"), TABLE.replace(b"train/", b"../train/"))
    )  # fmt: skip
    return zipped(labelled(table))


DATASETS: dict[str, Callable[[Source], bytes]] = {
    "tar header": _header, "tar end": _end, "compressed end": _compressed_end, "names": _names,
    "zip directory": _directory,
    "zip modes": _modes, "zip methods": _odd_methods, "no dataset": _layout,
}  # fmt: skip
RARE: dict[str, Callable[[Source], bytes]] = {"zip bomb": _zip_bomb, "endless zeros": _endless}  # seconds each


def archive_input(source: Source) -> Input:
    kinds = RARE if source.draws.random() < 0.01 else DATASETS
    name = source.draws.choice(sorted(kinds))
    data = kinds[name](source)
    if name == "zip directory":  # a bit that says how hard the packer tried changes nothing
        return Input(f"archive: {name}", "dataset", data, "nothing", "zip")
    return Input(f"archive: {name}", "dataset", data)


def image_input(source: Source) -> Input:
    return Input("image", "dataset", _image(source))


def label_input(source: Source) -> Input:
    return Input("label table", "multilabel", _table(source))
