"""The site is built strictly, asks nothing of other hosts, and its reference has every public name."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wbar_averaging
from tests.docs.pages import ROOT


def test_the_reference_has_every_public_name_of_the_averaging_library() -> None:
    page = (ROOT / "docs" / "reference" / "wbar_averaging.md").read_text()
    missing = [name for name in wbar_averaging.__all__ if not re.search(rf"\b{name}\b", page)]
    assert missing == []


def test_the_list_of_decisions_is_whole() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = set(re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))
    assert listed == {path.name for path in folder.glob("0*.md")}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_a_forge_shows(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"`[^`]*`", "", page.read_text())):
        if not re.match(r"https?://", target):
            assert (page.parent / target).is_file(), target


@pytest.mark.long
def test_the_site_is_built_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name in ("docs", "wbar", "averaging"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [sys.executable, "-P", "-m", "zensical", "build", "--strict", "--clean"]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    told = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **proxies},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout + told.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 45
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"?([^\" >]+)", page.read_text())
        loaded += re.findall(
            r"<link[^>]*rel=\"?(?:stylesheet|preconnect|preload|icon)[^>]*href=\"?([^\" >]+)", page.read_text()
        )
        assert not [one for one in loaded if re.match(r"(https?:)?//", one)], page
    reference = (tmp_path / "site" / "reference" / "wbar_averaging.html").read_text()
    assert 'id="wbar_averaging.RunningMean"' in reference
