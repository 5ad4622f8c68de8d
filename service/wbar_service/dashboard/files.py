"""The dashboard's own files: the style, the script, the icon and two libraries, kept by browsers for good."""

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from wbar.errors import NotFound
from wbar_service.dashboard.pages import STATIC

router = APIRouter(include_in_schema=False)

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in TYPES}


@router.get("/static/{name:path}")
async def get_file(name: str) -> Response:
    """Return a file; its address carries its digest, so a browser asks once for each version."""
    path = FILES.get(name)
    if path is None:
        raise NotFound(f"there is no file {name[:64]!r}")
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return FileResponse(path, media_type=TYPES[path.suffix], headers=kept)
