"""Derive the blocking client from the asynchronous one: the same lines without `async` and `await`.

`make client` writes `wbar/client/_sync/`; tests/client/test_derived.py compares it with what this makes of the source.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, DERIVED = ROOT / "wbar/client/_async", ROOT / "wbar/client/_sync"
NOTE = "# Derived from wbar/client/_async/{name} by `make client` (tools/derive_client.py): edit that one."

# In this order. Docstrings are changed like code, so that they say `with` where the other says `async with`.
RULES = (
    (r"^from anyio\.to_thread import run_sync as in_thread\n", ""),  # the blocking client works in the caller's thread
    (r"\bawait in_thread\(([\w.]+), ", r"\1("),
    (r"\bawait in_thread\(([\w.]+)\)", r"\1()"),
    (r"\bfrom anyio import sleep\b", "from time import sleep"),
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    (r"\bAwaitable, ", ""),
    (
        r"\bAsync(Client|Checkpoints|Datasets|Generator|Iterator|Jobs|Keys|Merges|Resource|Studies|Webhooks|Workers)\b",
        r"\1",
    ),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b_async\b", "_sync"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|closing|read|iter_bytes|iter_lines)\b", r"\1"),
)


def derived(path: Path) -> str:
    """Return the blocking form of a module of the source."""
    text = path.read_text()
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = f"{NOTE.format(name=path.name)}\n{text}"
    # Imports change their order, some loops become simpler, and some lines fit where they did not.
    fix = ["check", "--select", "I,UP028,C416", "--fix", "--unsafe-fixes", "--quiet"]
    ours = ["--config", "lint.isort.known-first-party=['wbar']"]  # also of a module that is not there yet
    for command in ([*fix, *ours], ["format", "--quiet"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ruff", *command, "--stdin-filename", str(DERIVED / path.name), "-"],
            input=text, capture_output=True, text=True, check=True, cwd=ROOT,
        )  # fmt: skip
        text = done.stdout
    return text


def modules() -> dict[str, str]:
    """Return every module of the blocking client by its name."""
    made = {path.name: derived(path) for path in sorted(SOURCE.glob("*.py"))}
    note = NOTE.format(name="")
    made["__init__.py"] = f'{note}\n"""The blocking client, derived from the asynchronous one."""\n'
    return made


def main() -> None:
    """Write them, and delete those whose source is gone."""
    made = modules()
    for name, text in made.items():
        (DERIVED / name).write_text(text)
    for path in DERIVED.glob("*.py"):
        if path.name not in made:
            path.unlink()


if __name__ == "__main__":
    main()
