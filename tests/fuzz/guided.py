"""`python -m tests.fuzz.guided --reader checkpoint --seconds 60`: inputs that atheris finds by the lines that they reach.

Coverage-guided (libFuzzer), in this process: it finds what nobody thought of, where `tests.fuzz` tries what somebody did.
The start is a small valid file of each format. A finding is an input that raises anything but a refusal with a code, takes
more than ten seconds, or more than 4 GiB; it is kept in the folder that is printed, and the exit status is not 0.
`make fuzz-guided` installs atheris, which there are wheels of for Linux and macOS.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris
import torch
from safetensors.torch import save

with atheris.instrument_imports(include=["wbar_training.uploads", "wbar_averaging", "wbar.text"]):
    from wbar_averaging import safetensors_file  # noqa: F401  # instrumented where it is imported first
    from wbar_training.uploads import packing, state_dicts

from tests.fuzz.inputs import BASES, TASKS, Reader, saved
from wbar.errors import Rejected
from wbar_training.uploads.limits import MIB, UploadLimits

LIMITS = UploadLimits(bytes=64 * MIB, files=10_000)
LIBFUZZER = ("-timeout=10", "-rss_limit_mb=4096", "-max_len=300000", "-print_final_stats=1")


def target(reader: Reader, folder: Path) -> Callable[[bytes], None]:
    """Return what atheris calls with each input."""
    upload, out = folder / "upload", folder / "out"

    def read(data: bytes) -> None:
        upload.write_bytes(data)
        try:
            if reader == "checkpoint":
                state_dicts.read(upload, LIMITS)
            else:
                packing.pack(upload, out, LIMITS, TASKS[reader])
        except Rejected as refusal:
            if not refusal.code:
                raise RuntimeError("a refusal without a code") from refusal

    return read


def starts(reader: Reader) -> list[bytes]:
    """Return valid files to begin with: small ones, which libFuzzer changes thousands of times a second."""
    if reader == "checkpoint":
        small = {"conv.weight": torch.ones(2, 1), "bn.num_batches_tracked": torch.tensor(3)}
        nested = {"state_dict": small, "epoch": 1}
        return [save(small), *(saved(nested, _use_new_zipfile_serialization=new) for new in (True, False))]
    return [data() for kind, _, data in BASES.values() if kind == reader]


def main() -> None:
    """Read the arguments, write the start, and hand over to libFuzzer, which does not return."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.guided", description=__doc__)
    parser.add_argument("--reader", choices=("checkpoint", *TASKS), default="checkpoint")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="Kept between runs; default: a new folder.")
    options = parser.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="wbar-corpus-"))
    corpus.mkdir(exist_ok=True)
    for number, data in enumerate(starts(options.reader)):
        (corpus / f"start-{number}").write_bytes(data)
    findings = Path(tempfile.mkdtemp(prefix="wbar-findings-"))
    sys.stderr.write(f"corpus in {corpus}, findings go to {findings}\n")
    scratch = Path(tempfile.mkdtemp(prefix="wbar-guided-"))
    arguments = [*LIBFUZZER, f"-max_total_time={options.seconds}", f"-artifact_prefix={findings}/", str(corpus)]
    atheris.Setup([sys.argv[0], *arguments], target(options.reader, scratch))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
