"""Headers of tar archives, written by hand: what tarfile would not write."""

from wbar.errors import ContentTooLarge, InvalidArchive, Rejected, UnsafePath


def header(name: str, kind: bytes = b"0", size: int = 0, raw_size: bytes | None = None) -> bytes:
    """Write a ustar header by hand."""
    fields = name.encode("utf-8", "surrogateescape")[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2
    fields += raw_size or f"{size:011o}\0".encode()
    fields += b"00000000000\0" + b" " * 8 + kind + bytes(100) + b"ustar\x0000"
    fields = fields.ljust(512, b"\0")
    return fields[:148] + f"{sum(fields):06o}\0 ".encode() + fields[156:]


def pax(**records: str) -> bytes:
    data = b""
    for key, value in records.items():
        body = f" {key.replace('__', '.')}={value}\n".encode()
        length = len(body) + 1
        while len(str(length)) + len(body) != length:
            length += 1
        data += str(length).encode() + body
    return header("pax", b"x", len(data)) + data + bytes(-len(data) % 512)


HEADERS: dict[str, tuple[bytes, type[Rejected], str]] = {
    "negative pax size": (pax(size="-1") + header("train/0/a.png"), InvalidArchive, "'-1' for the size"),
    "odd pax size": (pax(size="1e9") + header("train/0/a.png"), InvalidArchive, "'1e9' for the size"),
    "huge pax size": (pax(size="9" * 19) + header("train/0/a.png"), ContentTooLarge, "limit"),
    "negative binary size": (header("train/0/a.png", raw_size=b"\xff" * 12), InvalidArchive, "negative size"),
    "huge binary size": (header("train/0/a.png", raw_size=b"\x80" + b"\x7f" * 11), ContentTooLarge, "limit"),
    "words for a size": (
        header("train/0/a.png", raw_size=b"ten bytes\0\0\0"),
        InvalidArchive,
        "'ten bytes' for the size",
    ),
    "huge pax header": (header("pax", b"x", 2**30), InvalidArchive, "extended tar header has 1073741824 bytes"),
    "huge long name": (header("name", b"L", 2**30), InvalidArchive, "extended tar header has"),
    "damaged pax header": (header("pax", b"x", 9) + b"99 path=x".ljust(512, b"\0"), InvalidArchive, "is damaged"),
    "pax record of no length": (header("pax", b"x", 9) + b"0 path=x\n".ljust(512, b"\0"), InvalidArchive, "is damaged"),
    "sparse in pax": (pax(GNU__sparse__map="0,1") + header("train/0/a.png"), InvalidArchive, "sparse"),
    "sparse of GNU": (header("train/0/a.png", b"S"), InvalidArchive, "sparse files"),
    "several volumes": (header("train/0/a.png", b"M"), InvalidArchive, "several volumes"),
    "link": (header("train/0/a.png", b"2"), UnsafePath, "is a link"),
    "hard link": (header("train/0/a.png", b"1"), UnsafePath, "is a link"),
    "link in pax": (pax(linkpath="/etc/passwd") + header("train/0/a.png"), UnsafePath, "is a link to '/etc/passwd'"),
    "device": (header("train/0/a.png", b"3"), UnsafePath, "device or pipe"),
    "block device": (header("train/0/a.png", b"4"), UnsafePath, "device or pipe"),
    "pipe": (header("train/0/a.png", b"6"), UnsafePath, "device or pipe"),
    "path in pax": (pax(path="../../evil.png") + header("train/0/a.png"), UnsafePath, "points outside"),
    "checksum": (header("train/0/a.png")[:-1] + b"x", InvalidArchive, "there is no tar header at byte 0"),
}
