"""Memory that really runs out: a control group that is too small, or a limit of the process below what it needs."""

import os
import resource
import time
import uuid
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup/memory")  # version 1
_UNIFIED = Path("/sys/fs/cgroup")  # version 2


class SmallGroup:
    """A control group of processes. Once it has a limit, the kernel ends a process in it that needs more: an OOM kill."""

    def __init__(self) -> None:
        version1 = (_GROUPS / "memory.limit_in_bytes").exists()
        self.folder = (_GROUPS if version1 else _UNIFIED) / f"wbar-faults-{uuid.uuid4().hex[:8]}"
        self._limit, self._usage, self._none = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "-1")
            if version1
            else ("memory.max", "memory.current", "max")
        )
        self.folder.mkdir()
        (self.folder / self._limit).write_text(self._none)

    def take(self, pid: int) -> None:
        """Move a process into the group; what it has already stays with its old group."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def squeeze(self, pid: int, spare: int) -> None:
        """Move a process into the group and leave the group so many bytes beyond what it uses."""
        self.take(pid)
        usage = int((self.folder / self._usage).read_text())
        (self.folder / self._limit).write_text(str(usage + spare))

    def relax(self) -> None:
        """Take the limit away."""
        (self.folder / self._limit).write_text(self._none)

    def close(self) -> None:
        """Delete the group; what is alive in it goes back to the group above."""
        self.relax()
        for pid in (self.folder / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (self.folder.parent / "cgroup.procs").write_text(pid)
        for _ in range(100):
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.05)


def groups_available() -> bool:
    """Whether this process may make a control group that limits memory."""
    if os.getuid() != 0:
        return False
    try:
        SmallGroup().close()
    except OSError:
        return False
    return True


def refuse_more(pid: int, spare: int) -> None:
    """Have the system refuse a process more than `spare` bytes beyond what it has mapped now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
