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
    """A control group with this much memory. Its kernel ends a process in it that needs more: an OOM kill."""

    def __init__(self, limit: int) -> None:
        version1 = (_GROUPS / "memory.limit_in_bytes").exists()
        self.folder = (_GROUPS if version1 else _UNIFIED) / f"wbar-faults-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir()
        (self.folder / ("memory.limit_in_bytes" if version1 else "memory.max")).write_text(str(limit))

    def take(self, pid: int) -> None:
        """Move a process into the group; what it has already stays with its old group."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        """Delete the group, whose processes have ended."""
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
        SmallGroup(1 << 22).close()
    except OSError:
        return False
    return True


def refuse_more(pid: int, spare: int) -> None:
    """Have the system refuse a process more than `spare` bytes beyond what it has mapped now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
