"""Take the dashboard's two libraries from the npm registry, at the versions and digests that are written here.

    python tools/vendor_scripts.py [--check]

With `--check` nothing is written: the files in the package are compared with the digests. To update a library, change its
version, run this, and write the digests that it prints.
"""

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "service" / "wbar_service" / "dashboard" / "static" / "vendor"

# The package, the file inside it, the name here, its sha256.
FILES = (
    (
        "htmx.org@2.0.11",
        "dist/htmx.min.js",
        "htmx.min.js",
        "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717",
    ),
    ("htmx.org@2.0.11", "LICENSE", "htmx.LICENSE", "d3d2456f76414f2456104660ebd65aff1c04cd7966b942bdabd63f3cdb316a38"),
    (
        "uplot@1.6.32",
        "dist/uPlot.iife.min.js",
        "uPlot.iife.min.js",
        "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    ),
    (
        "uplot@1.6.32",
        "dist/uPlot.min.css",
        "uPlot.min.css",
        "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    ),
    ("uplot@1.6.32", "LICENSE", "uPlot.LICENSE", "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd"),
)


def packed(package: str, folder: Path) -> Path:
    """Download a package; return the path of its archive."""
    done = subprocess.run(
        ["npm", "pack", "--silent", package],  # noqa: S607
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return folder / done.stdout.strip().splitlines()[-1]


def main() -> int:
    """Download or check; returns 1 where a file is not what its digest says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary:
        archives: dict[str, Path] = {}
        for package, inside, name, sha256 in FILES:
            if not check:
                archive = archives.setdefault(package, Path())
                if not archive.name:
                    archive = archives[package] = packed(package, Path(temporary))
                with tarfile.open(archive) as opened:
                    content = opened.extractfile(f"package/{inside}")
                    assert content is not None
                    (FOLDER / name).write_bytes(content.read())
            found = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
            if found != sha256:
                wrong += 1
                print(f"{name}: sha256 {found}, and {sha256} is written here", file=sys.stderr)  # noqa: T201
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
