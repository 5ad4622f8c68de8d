"""`python -m tests.clients`: clients that are not Python's, or bring their own copy of much of it, against a service.

It starts a whole service on loopback, installs the generators (npm, and a wheel that carries openapi-generator's jar) into a
temporary folder, generates, compiles and runs the flow of each: upload, job, poll, download. tus-js-client uploads in every
way that it knows. It needs node 20, Java 11 and the package registries.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.clients.generated import FLOWS, SECONDS, generate, run_flow, write_schema
from tests.conftest import Broker, Service
from tests.material import write_start
from wbar.transfers import sha256_of

NPM = ["openapi-typescript@7", "openapi-fetch@0", "typescript@5", "@types/node@20"]
PYPI = ["openapi-generator-cli>=7.26,<8", "urllib3>=2.7"]  # the client needs urllib3, and dateutil, which Celery brings
COMPILER = {
    "target": "es2022", "module": "nodenext", "moduleResolution": "nodenext", "strict": True, "types": ["node"],
    "noUncheckedIndexedAccess": True,
}  # fmt: skip


def openapi_typescript(service: Service, folder: Path) -> None:
    (folder / "package.json").write_text(json.dumps({"type": "module", "private": True}))
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": COMPILER, "files": ["flow.ts"]}))
    (folder / "flow.ts").write_text((FLOWS / "openapi_typescript.ts").read_text())
    generate(["npm", "install", "--no-audit", "--no-fund", *NPM], folder)
    generate(["npx", "openapi-typescript", str(write_schema(service, folder)), "--output", "wbar.d.ts"], folder)
    generate(["npx", "tsc"], folder)
    run_flow(["node", "flow.js"], service, folder)


def openapi_generator(service: Service, folder: Path) -> None:
    generate([sys.executable, "-P", "-m", "pip", "install", "--quiet", "--target", "tools", *PYPI], folder)
    jar = next((folder / "tools").rglob("openapi-generator.jar"))
    schema, name = str(write_schema(service, folder)), "packageName=wbar_openapi"
    command = ["java", "-jar", str(jar), "generate", "-g", "python", "-i", schema, "-o", "generated"]
    generate([*command, "--additional-properties", name], folder)
    run_flow(
        [sys.executable, "-P", "-c", _START, str(FLOWS / "openapi_generator.py")], service, folder, folder / "generated"
    )


def tus_js_client(service: Service, folder: Path) -> None:
    (folder / "package.json").write_text(json.dumps({"type": "module", "private": True}))
    (folder / "flow.mjs").write_text((FLOWS / "tus_js_client.mjs").read_text())
    generate(["npm", "install", "--no-audit", "--no-fund", "tus-js-client@4"], folder)
    start = write_start(folder)
    command = ["node", "flow.mjs", service.url, service.key, str(start), str(folder / "urls.json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    ways = dict(line.split() for line in done.stdout.splitlines())
    assert ways.pop("terminated") == "404"
    assert set(ways) == {"whole", "interrupted", "parallel", "creation", "deferred", "override"}
    assert set(ways.values()) == {sha256_of(start)}, "the bytes of every way are the file's"


# The client's own dependencies come last, so that they replace nothing that is installed.
_START = (
    "import runpy, sys; sys.path.append('tools'); sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
)

CLIENTS: dict[str, Callable[[Service, Path], None]] = {
    "openapi-typescript": openapi_typescript,
    "openapi-generator": openapi_generator,
    "tus-js-client": tus_js_client,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("client", nargs="*", help=f"of {', '.join(CLIENTS)}; all where none is named")
    chosen = parser.parse_args().client or list(CLIENTS)
    broker = Broker()
    with tempfile.TemporaryDirectory(prefix="wbar-clients-") as folder:
        broker.start()
        service = Service(Path(folder), f"sqlite:///{folder}/wbar.db", broker)
        try:
            service.start()
            for name in chosen:
                own = Path(folder) / name
                own.mkdir()
                CLIENTS[name](service, own)
                print(f"{name}: ok", flush=True)
        finally:
            service.stop()
            broker.kill()


if __name__ == "__main__":
    main()
