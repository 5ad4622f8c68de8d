"""What the reports of several tasks have: numbers that may be missing, and a picture of held-out images."""

from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path


def number(value: float | None) -> str:
    """Return a score's text; a dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def picture_section(title: str, alt: str, picture: Path | None) -> Iterator[str]:
    """Yield a heading and the PNG in the page itself; nothing where there is no picture."""
    if picture is None:
        return
    yield f"<h2>{title}</h2>"
    data = b64encode(picture.read_bytes()).decode()
    yield f"<div class='wide'><img alt='{alt}' src='data:image/png;base64,{data}'></div>"
