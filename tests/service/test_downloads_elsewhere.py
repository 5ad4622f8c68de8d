"""Whole files sent by the web server before the API, or by the bucket: the same bytes, the same promises."""

import hashlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from tests.conftest import Broker, Service, wait_until
from tests.material import write_start
from tests.service.app import app_in
from tests.store.test_s3 import blobs, endpoint  # noqa: F401  # a bucket
from wbar import Client
from wbar_service.settings import ServiceSettings
from wbar_store.blobs import Blobs
from wbar_store.checkpoints import Checkpoints, GivenNetwork
from wbar_store.database import Database, Tenant
from wbar_store.keys import Keys
from wbar_store.tables import checkpoints

# As in docs/operations.md.
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx-error.log;
user root;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{api};
      proxy_buffering off;
      proxy_request_buffering off;
      client_max_body_size 0;
    }}
    location /wbar-blobs/ {{
      internal;
      alias {blobs}/;
      etag off;
      add_header ETag $upstream_http_etag;
      add_header Repr-Digest $upstream_http_repr_digest;
      add_header X-Request-ID $upstream_http_x_request_id;
      add_header X-Content-Type-Options nosniff;
    }}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, api: int, blobs_folder: Path) -> Iterator[str]:
    """A real nginx before the API, as docs/operations.md configures it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, port=port, api=api, blobs=blobs_folder))
    server = subprocess.Popen(["nginx", "-c", str(conf), "-p", str(folder)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 20, "nginx")
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_nginx_sends_whole_files_with_the_services_headers(service: Service, tmp_path: Path) -> None:
    """The service's own API stays as it is: a second one, on the same database and blobs, hands downloads over."""
    url = service.environment["WBAR_BLOBS_URL"]
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(tmp_path))
    settings = {"WBAR_BLOBS_URL": url, "WBAR_DOWNLOADS": "x-accel-redirect"}
    handing = Service(tmp_path, service.environment["WBAR_DATABASE_URL"], service.broker, **settings)
    try:
        handing.start("api")
        with (
            nginx(tmp_path, handing.port, Path(url.removeprefix("file://"))) as front,
            httpx.Client(base_url=front, headers={"Authorization": f"Bearer {service.key}"}, trust_env=False) as http,
            service.http() as direct,
        ):
            path = f"/v1/checkpoints/{checkpoint.id}/content"
            whole, own = http.get(path, headers={"X-Request-ID": "mine"}), direct.get(path)
            assert whole.content == own.content
            assert "x-accel-redirect" not in whole.headers
            for name in (
                "etag",
                "repr-digest",
                "content-type",
                "content-disposition",
                "content-length",
                "cache-control",
            ):
                assert whole.headers[name] == own.headers[name], name
            assert whole.headers["x-request-id"] == "mine"
            assert whole.headers["accept-ranges"] == "bytes"
            part = http.get(path, headers={"Range": "bytes=10-19", "If-Range": own.headers["etag"]})
            assert (part.status_code, part.content) == (206, own.content[10:20])
            assert part.headers["content-range"] == f"bytes 10-19/{len(own.content)}"
            assert http.get(path, headers={"If-None-Match": own.headers["etag"]}).status_code == 304
            assert http.head(path).headers["content-length"] == str(len(own.content))
            assert http.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
            assert http.get(f"/wbar-blobs/{Blobs.path(checkpoint.sha256)}").status_code == 404  # internal
            with Client(front, service.key) as client:
                target = client.checkpoints.download(checkpoint.id, tmp_path / "got")
            assert hashlib.sha256(target.read_bytes()).hexdigest() == checkpoint.sha256
    finally:
        handing.stop()


def ready_checkpoint(database: Database, stored: Blobs, folder: Path) -> str:
    """A checkpoint whose row says that it was validated."""
    received = stored.put_file(write_start(folder))
    with stored.keep(received):
        made = Checkpoints(database).create(Tenant("default"), "x", received, GivenNetwork())
        with database.write() as connection:
            connection.execute(checkpoints.update().where(checkpoints.c.id == made.id).values(status="ready"))
    return made.id


def test_a_bucket_sends_what_a_presigned_url_names(blobs: Blobs, tmp_path: Path) -> None:  # noqa: F811
    database = blobs.references.database
    checkpoint = ready_checkpoint(database, blobs, tmp_path)
    key = Keys(database).create("reader").key
    bucket = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    settings = {
        "blobs_url": f"s3://{bucket}/wbar",
        "downloads": "presigned",
        "database_url": f"sqlite:///{tmp_path}/wbar.db",
    }
    with app_in(tmp_path, **settings) as app:
        sent = app.request("GET", f"/v1/checkpoints/{checkpoint}/content", key=key)
        head = app.request("HEAD", f"/v1/checkpoints/{checkpoint}/content", key=key)
    assert (sent.status_code, sent.content, head.status_code) == (307, b"", 200)
    digest = sent.headers["etag"].strip('"')
    whole = httpx.get(sent.headers["location"], trust_env=False)
    assert hashlib.sha256(whole.content).hexdigest() == digest
    part = httpx.get(sent.headers["location"], headers={"Range": "bytes=5-9"}, trust_env=False)
    assert (part.status_code, part.content) == (206, whole.content[5:10])
    assert key not in sent.headers["location"]


def test_the_client_follows_to_the_bucket_and_goes_on_where_it_was(
    blobs: Blobs,  # noqa: F811
    tmp_path: Path,
) -> None:
    checkpoint = ready_checkpoint(blobs.references.database, blobs, tmp_path)
    bucket = tmp_path.name.replace("_", "-").lower()[:60].strip("-")
    broker = Broker()
    broker.start()
    settings = {"WBAR_BLOBS_URL": f"s3://{bucket}/wbar", "WBAR_DOWNLOADS": "presigned"}
    service = Service(tmp_path, f"sqlite:///{tmp_path / 'wbar.db'}", broker, **settings)
    whole = write_start(tmp_path).read_bytes()
    mark, target = f'"{hashlib.sha256(whole).hexdigest()}"', tmp_path / "got"
    try:
        service.start("api")
        with service.client() as client:
            for tag, kept in ((mark, 1000), ('"of other bytes"', 0)):
                done: list[int] = []
                (tmp_path / "got.part").write_bytes(whole[:1000])
                (tmp_path / "got.part.etag").write_text(tag)
                client.checkpoints.download(checkpoint, target, lambda now, _total, done=done: done.append(now))  # type: ignore[misc]
                assert target.read_bytes() == whole
                assert done[0] == kept
    finally:
        service.stop()
        broker.kill()


def test_apache_and_lighttpd_are_told_the_path(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'wbar.db'}")
    with app_in(tmp_path, downloads="x-sendfile") as app:
        stored = Blobs(f"file://{tmp_path / 'blobs'}", database)
        checkpoint = ready_checkpoint(database, stored, tmp_path)
        sent = app.request("GET", f"/v1/checkpoints/{checkpoint}/content")
        part = app.request("GET", f"/v1/checkpoints/{checkpoint}/content", headers={"Range": "bytes=0-3"})
    named = Path(sent.headers["x-sendfile"])
    assert hashlib.sha256(named.read_bytes()).hexdigest() == sent.headers["etag"].strip('"')
    assert (part.status_code, part.content) == (206, named.read_bytes()[:4])
    assert "x-sendfile" not in part.headers
    database.dispose()


@pytest.mark.parametrize(
    ("downloads", "url"), [("presigned", "file:///x"), ("x-sendfile", "s3://x"), ("x-accel-redirect", "s3://x")]
)
def test_a_way_that_does_not_fit_the_blobs_is_refused_at_the_start(downloads: str, url: str) -> None:
    with pytest.raises(ValidationError, match=f"WBAR_DOWNLOADS={downloads} needs blobs in"):
        ServiceSettings(downloads=downloads, blobs_url=url)  # type: ignore[arg-type]
