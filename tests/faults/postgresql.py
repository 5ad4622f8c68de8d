"""A PostgreSQL server of the harness's own, which faults may restart."""

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path


class PostgresServer:
    """A server on a free port in a temporary folder; as root it runs as the user postgres, since it refuses root."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        assert found, "there is no PostgreSQL server on this machine"
        self._bin = found[-1].parent
        self.folder = Path(tempfile.mkdtemp(prefix="wbar-faults-pg-"))
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        self._run("initdb", "-D", "data", "-A", "trust", "-U", "wbar")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"postgresql://wbar@127.0.0.1:{self.port}/postgres"
        self._start("start")

    def _start(self, action: str) -> None:
        options = f"-k {self.folder} -h 127.0.0.1 -p {self.port} -F"
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "-l", "log", "-o", options, action)

    def restart(self) -> None:
        """Restart it as after a crash: connections are cut, and what was not committed is gone."""
        self._start("restart")

    def stop(self) -> None:
        """Stop the server and delete its folder."""
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, name: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        subprocess.run(
            [*user, str(self._bin / name), *arguments],
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )


def available() -> bool:
    """Whether this machine has a server to start."""
    return any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
