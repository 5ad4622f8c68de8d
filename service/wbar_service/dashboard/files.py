"""The dashboard's own files: the style, the script, the icon and two libraries, kept by browsers until they change."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from wbar.errors import NotFound
from wbar_service.dashboard.pages import STATIC, static

router = APIRouter(include_in_schema=False)

TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.suffix in TYPES}


@router.get("/static/{name:path}")
async def get_file(name: str, request: Request) -> Response:
    """Return a file; where its address carries its digest, a browser asks once for each version."""
    path = FILES.get(name)
    if path is None:
        raise NotFound(f"there is no file {name[:64]!r}")
    # A module is imported by its bare name, from one whose address has a digest: the browser asks whether it has changed.
    named = static(name).endswith(f"?{request.url.query}") and request.url.query
    kept = "public, max-age=31536000, immutable" if named else "no-cache"
    return FileResponse(path, media_type=TYPES[path.suffix], headers={"Cache-Control": kept})
