"""Fetch the wheels that a GPU machine without a network needs beside its own torch, and Fashion-MNIST, into `.wheels/`.

    python tools/fetch_gpu_wheels.py [--data FOLDER]
    python tools/fetch_gpu_wheels.py --more          into `.wheels-more/`, what tests of detectors, timm and transformers need

They are for CPython 3.12 on x86-64 Linux. The versions are the locks'. What such a machine has anyway is not carried, except
small pure-Python packages, whose version there is unknown: theirs come along and take their places. Our own wheel comes along
for its metadata: the command line finds its commands there. `tools/gpu_machine.sh` installs them and runs a command.
"""

import argparse
import gzip
import io
import shutil
import subprocess
import sys
import tarfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEGABYTE = 1e6
MOST = 60 * MEGABYTE  # with the tree's 5 less than the 64 MiB that may be carried to the machine at once
FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
TAGS = [f"manylinux_2_{minor}_x86_64" for minor in (35, 34, 31, 28, 27, 24, 17)]
TAGS += [f"manylinux{year}_x86_64" for year in ("2014", "2010", "1")]

# What a machine with torch and the usual scientific packages has, of those that we resolve to.
THERE = {
    "cloudpickle",
    "cuda-bindings",
    "cuda-pathfinder",
    "cuda-toolkit",
    "filelock",
    "fsspec",
    "joblib",
    "markupsafe",
}
THERE |= {
    "mpmath",
    "narwhals",
    "networkx",
    "numpy",
    "pillow",
    "pygments",
    "pyyaml",
    "safetensors",
    "scikit-learn",
    "scipy",
}
THERE |= {"setuptools", "sympy", "threadpoolctl", "torch", "torchvision", "triton", "uvloop"}
MORE = ("detection", "timm", "transformers")  # extras
# What nothing needs that runs there, and much: PostgreSQL, a reload at every change, archives of Zstandard.
LEFT_OUT = {"psycopg", "psycopg-binary", "watchfiles", "zstandard"}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tools/fetch_gpu_wheels.py", description=__doc__)
    parser.add_argument("--folder", type=Path, help="default: .wheels, or .wheels-more")
    parser.add_argument(
        "--more", action="store_true", help="the wheels of MORE alone, which may be carried by themselves"
    )
    parser.add_argument(
        "--data", type=Path, default=FASHION, help="Fashion-MNIST's four files, gzipped; left out where missing"
    )
    options = parser.parse_args()
    folder: Path = options.folder or ROOT / (".wheels-more" if options.more else ".wheels")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    absent = [each for each in resolved("embedded") if name(each) not in THERE | LEFT_OUT]
    if options.more:
        more = [each for each in resolved("embedded", *MORE) if name(each) not in THERE | LEFT_OUT]
        fetch([each for each in more if each not in absent], folder)
        return 0 if told(folder) <= MOST else 1
    fetch(absent, folder)
    run("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    pack(options.data, folder / "fashion-mnist.tar.xz")
    return 0 if told(folder) <= MOST else 1


def run(module: str, *arguments: str) -> str:
    """Run a module of this Python; return what it printed. Raises CalledProcessError."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


def resolved(*extras: str) -> list[str]:
    """Return `name==version` of everything that wbar with these extras needs on Python 3.12."""
    if find_spec("uv") is None:
        sys.exit("uv resolves the versions, and is not installed: pip install uv")
    locks = [f"--constraint=locks/{room}.txt" for room in ("service", "worker")]
    options = [
        *(f"--extra={extra}" for extra in extras),
        "--python-version=3.12",
        "--python-platform=x86_64-manylinux_2_28",
        *locks,
    ]
    lines = run(
        "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate", *options
    ).splitlines()
    pinned = [line for line in lines if "==" in line]
    return [each for each in pinned if not name(each).startswith("nvidia-") or name(each) == "nvidia-ml-py"]


def name(requirement: str) -> str:
    return requirement.partition("==")[0]


def fetch(requirements: list[str], folder: Path) -> None:
    tags = [f"--platform={tag}" for tag in [*TAGS, "any"]]
    target = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--implementation=cp", *tags]
    run("pip", "download", "--quiet", "--disable-pip-version-check", *target, "--dest", str(folder), *requirements)


def pack(data: Path, archive: Path) -> None:
    """Write an archive of the plain files: smaller by a sixth than the gzipped ones."""
    files = sorted(data.glob("*-ubyte.gz"))
    if not files:
        return
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in files:
            content = gzip.decompress(path.read_bytes())
            entry = tarfile.TarInfo(path.stem)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def told(folder: Path) -> float:
    """Print the files, largest first, and their sum; return the sum in bytes."""
    files = sorted(folder.iterdir(), key=lambda path: -path.stat().st_size)
    for path in files:
        print(f"{path.stat().st_size / MEGABYTE:7.2f} MB  {path.name}")
    total = float(sum(path.stat().st_size for path in files))
    print(f"{total / MEGABYTE:7.2f} MB  in all, of {MOST / MEGABYTE:.0f}")
    return total


if __name__ == "__main__":
    sys.exit(main())
