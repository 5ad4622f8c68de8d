"""The folder of a result that transformers, timm or PEFT loads, as one zip: weights, configuration, card.

Stored, not deflated, with fixed dates: equal contents give equal bytes, which are sent in ranges like any other file's. The
weights are the delivered file's, byte for byte, behind a header with the network's own names and the `format` that
transformers asks for. Torch-free: the worker writes it while the attempt's process is gone. `pack_folder` packs a folder that
lies there already, a merge's.
"""

import shutil
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from wbar.results import OfferedFormat
from wbar.transfers import sha256_of
from wbar_averaging.safetensors_file import header_bytes, read_layout
from wbar_training.outcome import HubConfig

DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
CHUNK = 1024 * 1024


def offered_folder(out: Path, config: HubConfig, weights: Path, card: str) -> OfferedFormat:
    """Write the zip to `out` as `write_hub_folder` does; return what became of it: on a full disk there is none, and why."""
    try:
        write_hub_folder(out, config, weights, card)
        return OfferedFormat(format="huggingface", bytes=out.stat().st_size, sha256=sha256_of(out))
    except OSError as error:
        out.unlink(missing_ok=True)
        why = error.strerror or type(error).__name__
        return OfferedFormat(format="huggingface", reason=f"the worker could not pack the folder ({why})")


def write_hub_folder(out: Path, config: HubConfig, weights: Path, card: str) -> None:
    """Write the zip to `out`. weights: a safetensors file. Raises OSError."""
    texts = {"README.md": card, "config.json": config.config, "preprocessor_config.json": config.preprocessor}
    with ZipFile(out, "w", ZIP_STORED) as archive:
        for name, text in texts.items():
            if text is not None:
                archive.writestr(_entry(name), text.encode())
        header, begin = read_layout(weights)
        metadata = header.pop("__metadata__", {}) | {"format": "pt"}
        in_order = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
        start = header_bytes(
            ((name.removeprefix(config.prefix), entry["dtype"], entry["shape"]) for name, entry in in_order), metadata
        )
        entry = _entry("model.safetensors")
        entry.file_size = len(start) + weights.stat().st_size - begin  # so that one over 4 GiB has room for its size
        with open(weights, "rb") as file, archive.open(entry, "w") as member:
            file.seek(begin)
            member.write(start)
            shutil.copyfileobj(file, member, CHUNK)


def pack_folder(out: Path, folder: Path) -> None:
    """Write a zip of the files of a folder to `out`, the weights last. Raises OSError."""
    with ZipFile(out, "w", ZIP_STORED) as archive:
        for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name)):
            entry = _entry(path.name)
            entry.file_size = path.stat().st_size
            with open(path, "rb") as file, archive.open(entry, "w") as member:
                shutil.copyfileobj(file, member, CHUNK)


def _entry(name: str) -> ZipInfo:
    entry = ZipInfo(name, DATE)
    entry.create_system, entry.external_attr = 3, 0o100644 << 16  # a plain file, as any system but DOS has it
    return entry
