"""The memory that this process may use: the machine's, or less where a container limits it."""

import os
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 2**60  # cgroup v1 says "no limit" with a number near 2**63


def available(root: Path = Path("/")) -> int:
    """Return bytes: the smallest of the machine's memory and the limits of this process's cgroups, versions 1 and 2."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # The limit of any group around this one holds as well; in a container only the outermost may be visible.
        parts = [part for part in group.split("/") if part and part != ".."]
        for depth in range(len(parts), -1, -1):
            try:
                text = base.joinpath(*parts[:depth], name).read_text().strip()
            except OSError:
                continue
            if text.isdigit() and int(text) < UNLIMITED:
                yield int(text)
