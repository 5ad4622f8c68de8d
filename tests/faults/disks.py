"""A small disk for a folder (a tmpfs), which can be filled, freed, and made read-only. Needs root."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path


class SmallDisk:
    """A tmpfs over a folder; a plain folder where this process may not mount."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.mounted = os.getuid() == 0 and self._mount("-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs")

    def _mount(self, *arguments: str) -> bool:
        done = subprocess.run(["mount", *arguments, str(self.folder)], stderr=subprocess.DEVNULL, timeout=30)
        return done.returncode == 0

    def fill(self) -> None:
        """Leave no byte free."""
        with suppress(OSError), open(self.folder / ".filling", "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def free(self) -> None:
        """Delete what filled it."""
        (self.folder / ".filling").unlink(missing_ok=True)

    def read_only(self) -> bool:
        """Refuse writes; False if that did not work, since a file is open for writing all the time."""
        for _ in range(100):
            if self._mount("-o", "remount,ro"):
                return True
            time.sleep(0.01)
        return False

    def writable(self) -> None:
        """Take writes again."""
        self._mount("-o", "remount,rw")

    def unmount(self) -> None:
        """Unmount it; a folder that was not mounted stays."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], timeout=30)
