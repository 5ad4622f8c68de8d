"""The fenced blocks and the commands of the pages, as a reader sees them."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page (from the repository's root), the line of its code, its language, its code."""

    page: str
    line: int
    language: str
    code: str

    @property
    def first(self) -> str:
        """The beginning of its first line, by which lists name the block."""
        return self.code.split("\n", 1)[0].strip()[:60]

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, where its first line says so: `# job.yaml`."""
        found = re.fullmatch(r"# ([\w.-]+\.(?:yaml|yml|py|json))", self.first)
        return found and found[1]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in their order."""
    text = page.read_text()
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 2
        yield Block(str(page.relative_to(ROOT)), line, found["language"], textwrap.dedent(found["code"]))


def blocks() -> list[Block]:
    """Return every block of every page."""
    return [block for page in PAGES for block in blocks_of(page)]


def spans() -> Iterator[tuple[str, str]]:
    """Yield what stands between backquotes in the text of each page: the page, and the words."""
    for page in PAGES:
        for found in SPAN.finditer(FENCE.sub("", page.read_text())):
            yield str(page.relative_to(ROOT)), " ".join(found[1].split())
