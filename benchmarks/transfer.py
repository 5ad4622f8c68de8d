"""The two ends that an upload is measured with, as programs of their own: a client that costs little, and the floor.

    python -m benchmarks.transfer send HOST PORT FILE     the file as the body of POST /v1/checkpoints, by sendfile
    python -m benchmarks.transfer floor FILE COPY         read, sha256 and write in one pass, then fsync

`send` finds the API key in WBAR_API_KEY. Both print JSON with their wall and processor seconds.
"""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# A floor must be low: in pieces of a megabyte or more the same pass used up to eight times the system time on one
# machine (0.4 to 4 s for a gigabyte, 0.25 to 0.8 s in pieces of 64 to 512 KiB), which flatters whatever stands beside it.
CHUNK = 256 * 1024
SECONDS = 600.0


def send(host: str, port: str, path: str) -> dict[str, Any]:
    """The answer is that of the service; any other than 201 is an error."""
    connection = http.client.HTTPConnection(host, int(port), timeout=SECONDS)
    with open(path, "rb") as file:
        connection.putrequest("POST", "/v1/checkpoints?name=benchmark")
        connection.putheader("Authorization", f"Bearer {os.environ['WBAR_API_KEY']}")
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(os.fstat(file.fileno()).st_size))
        connection.endheaders()
        connection.sock.sendfile(file)
        response = connection.getresponse()
        body = response.read()
    connection.close()
    if response.status != 201:
        raise SystemExit(f"the upload was answered {response.status}: {body[:500]!r}")
    return dict(json.loads(body))


def floor(path: str, copy: str) -> dict[str, Any]:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(path, "rb", buffering=0) as source, open(copy, "wb", buffering=0) as target:
        while count := source.readinto(buffer):
            digest.update(buffer[:count])
            target.write(buffer[:count])
        os.fsync(target.fileno())
    return {"sha256": digest.hexdigest()}


def run(*words: str, api_key: str = "") -> dict[str, Any]:
    """This program in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "benchmarks.transfer", *words],
        cwd=Path(__file__).resolve().parents[1], env={**os.environ, "WBAR_API_KEY": api_key},
        check=True, stdout=subprocess.PIPE, timeout=SECONDS,
    )  # fmt: skip
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    begin, used = time.perf_counter(), time.process_time()
    answer = send(*sys.argv[2:]) if sys.argv[1] == "send" else floor(*sys.argv[2:])
    print(json.dumps(answer | {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - used}))
