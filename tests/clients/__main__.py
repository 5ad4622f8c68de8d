"""`python -m tests.clients`: the generators that are not Python's, or bring their own copy of much of it, against a service.

It starts a whole service on loopback, installs the generators (npm, and a wheel that carries openapi-generator's jar) into a
temporary folder, generates, compiles and runs the flow of each. It needs node 20, Java 11 and the package registries.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.clients.generated import FLOWS, generate, run_flow, write_schema
from tests.conftest import Broker, Service

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


# The client's own dependencies come last, so that they replace nothing that is installed.
_START = (
    "import runpy, sys; sys.path.append('tools'); sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
)

CLIENTS: dict[str, Callable[[Service, Path], None]] = {
    "openapi-typescript": openapi_typescript,
    "openapi-generator": openapi_generator,
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
                print(f"{name}: upload, job, poll, download: ok", flush=True)
        finally:
            service.stop()
            broker.kill()


if __name__ == "__main__":
    main()
