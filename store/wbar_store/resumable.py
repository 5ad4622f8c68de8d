"""Uploads that arrive in parts: a row says how far each has come, and names the durable objects that hold its bytes.

A part is an object that is closed and synced before its row is committed, so that the offset never says more than the disk
has. The offset moves by a compare-and-set: of two writers at the same place one wins, and the other's part is thrown away.
"""

from collections.abc import Iterator
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from wbar.errors import BadRequest, OffsetMismatch, TooLarge, UploadNotFinished, UploadUsed
from wbar.uploads import Status, Upload, decode_metadata
from wbar_store.blobs import Part
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.repository import Record, Repository
from wbar_store.tables import resumable_uploads, upload_parts

MOST_PARTS = 50_000
PAGE = 1000  # names of parts that are read at a time

uploads = resumable_uploads


class ResumableUpload(Record):
    """A row of `resumable_uploads`. received: bytes that are durable; partials: of a final upload, the ids it was made of."""

    kind: Literal["whole", "partial", "final"]
    length: int | None
    received: int
    parts: int
    given: str
    partials: str | None
    sha256: str | None
    used_at: float | None
    expires_at: float
    created_at: float

    @property
    def status(self) -> Status:
        """The status as the API says it."""
        if self.used_at is not None:
            return "used"
        return "finished" if self.received == self.length else "receiving"

    @property
    def metadata(self) -> dict[str, str]:
        """The client's metadata; it was checked when it was written."""
        return decode_metadata(self.given)

    def to_api(self) -> Upload:
        """Return the upload as the API sends it."""
        return Upload(
            id=self.id,
            status=self.status,
            offset=self.received,
            length=self.length,
            partial=self.kind == "partial",
            metadata=self.metadata,
            sha256=self.sha256,
            expires_at=rfc3339(self.expires_at),
            created_at=rfc3339(self.created_at),
        )


class ResumableUploads(Repository[ResumableUpload]):
    """The uploads in parts of all tenants.

    lifetime, everywhere: seconds from now on until an upload that gets nothing more expires.
    """

    table, kind, noun, record = uploads, "upload", "upload", ResumableUpload

    def create(
        self,
        tenant: Tenant,
        length: int | None,
        given: str,
        lifetime: float,
        partial: bool = False,
        sha256: str | None = None,
    ) -> ResumableUpload:
        """Insert an upload without bytes.

        length: in bytes; None: not known yet. given: Upload-Metadata. sha256: of the whole content, as announced.
        """
        kind: str = "partial" if partial else "whole"
        with self.database.write() as connection:
            return self._insert(
                connection, tenant, lifetime, kind=kind, length=length, received=0, parts=0, given=given, sha256=sha256
            )

    def fix_length(self, tenant: Tenant, upload_id: str, length: int) -> ResumableUpload:
        """Set the length of an upload that was created without one.

        Raises BadRequest where it has another one, or more bytes already, NotFound.
        """
        open_ = self._mine(tenant, upload_id) & uploads.c.length.is_(None) & (uploads.c.received <= length)
        with self.database.write() as connection:
            connection.execute(update(uploads).where(open_).values(length=length))
            record = self.get(tenant, upload_id)
        if record.length != length:
            raise BadRequest(
                f"Upload-Length is {length}, and the upload has "
                + (f"{record.received} bytes already" if record.length is None else f"a length of {record.length}")
            )
        return record

    def append(self, tenant: Tenant, upload_id: str, begin: int, part: Part | None, lifetime: float) -> ResumableUpload:
        """Add a part at `begin`, and let the upload live longer; None: no bytes came.

        Raises OffsetMismatch where the upload stands elsewhere, NotFound, TooLarge: nothing refers to the part then.
        """
        size = 0 if part is None else part.bytes
        here = self._mine(tenant, upload_id) & (uploads.c.received == begin) & uploads.c.used_at.is_(None)
        values = {
            "received": begin + size,
            "parts": uploads.c.parts + int(part is not None),
            "expires_at": now() + lifetime,
        }
        with self.database.write() as connection:
            row = connection.execute(update(uploads).where(here).values(**values).returning(*uploads.c)).first()
            if row is None:
                record = self.get(tenant, upload_id)
                raise OffsetMismatch(
                    f"{upload_id} stands at {record.received}, not at {begin}: another request has written; ask with HEAD",
                    headers={"Upload-Offset": str(record.received)},
                )
            if row.parts > MOST_PARTS:
                raise TooLarge(f"an upload has at most {MOST_PARTS} parts: send more bytes with each PATCH")
            if part is not None:
                values = {"upload": upload_id, "begin": begin, "bytes": part.bytes, "name": part.name}
                connection.execute(insert(upload_parts).values(**values))
            return self.record.of(row)

    def concatenate(
        self, tenant: Tenant, ids: list[str], given: str, lifetime: float, sha256: str | None = None
    ) -> ResumableUpload:
        """Make one finished upload of partial ones, in this order: their parts become its, and they are gone.

        The same ids again return what was made of them. Raises NotFound, UploadNotFinished, BadRequest where one is not
        partial or comes twice.
        """
        named = " ".join(ids)
        if len(set(ids)) < len(ids):
            raise BadRequest("an upload comes twice: a partial upload goes into one final upload, once")
        with self.database.write() as connection:
            made = tenant.select(uploads).where(uploads.c.partials == named)
            if (row := connection.execute(made).first()) is not None:
                return self.record.of(row)
            by_id = {one: self.get(tenant, one, lock=True) for one in sorted(ids)}  # in one order, or two would wait
            partials = [by_id[one] for one in ids]
            for one in partials:
                if one.kind != "partial":
                    raise BadRequest(f"{one.id} was not created with `Upload-Concat: partial`")
                if one.status != "finished":
                    raise UploadNotFinished(f"{one.id} has {one.received} of its {one.length} bytes")
            size, parts = sum(one.received for one in partials), sum(one.parts for one in partials)
            final = self._insert(
                connection, tenant, lifetime,
                kind="final", length=size, received=size, parts=parts, given=given, partials=named, sha256=sha256,
            )  # fmt: skip
            begin = 0
            for one in partials:
                moved = update(upload_parts).where(upload_parts.c.upload == one.id)
                connection.execute(moved.values(upload=final.id, begin=upload_parts.c.begin + begin))
                begin += one.received
            connection.execute(delete(uploads).where(uploads.c.id.in_(ids)))
            return final

    def names(self, tenant: Tenant, upload_id: str) -> Iterator[str]:
        """Yield the names of an upload's parts in the order of their bytes."""
        query = select(upload_parts.c.begin, upload_parts.c.name).join(uploads).where(self._mine(tenant, upload_id))
        after = -1
        while True:
            page = query.where(upload_parts.c.begin > after).order_by(upload_parts.c.begin).limit(PAGE)
            with self.database.read() as connection:
                rows = connection.execute(page).all()
            if not rows:
                return
            yield from (row.name for row in rows)
            after = rows[-1].begin

    def use(self, tenant: Tenant, upload_id: str, sha256: str) -> list[str]:
        """Note that something is made of the upload; returns its parts, to be discarded once that is committed.

        Call it in the block that makes it. sha256: of the content. Raises UploadUsed, NotFound.
        """
        unused = self._mine(tenant, upload_id) & uploads.c.used_at.is_(None)
        with self.database.write() as connection:
            noted = connection.execute(update(uploads).where(unused).values(used_at=now(), sha256=sha256))
            if noted.rowcount == 0:
                self.get(tenant, upload_id)
                raise UploadUsed(f"{upload_id} was used already: a checkpoint or dataset was made of it")
            return self._forget_parts(connection, upload_id)

    def remove(self, tenant: Tenant, upload_id: str) -> list[str]:
        """Delete an upload; returns its parts, to be discarded. Raises NotFound."""
        with self.database.write() as connection:
            self.get(tenant, upload_id, lock=True)
            parts = self._forget_parts(connection, upload_id)
            connection.execute(delete(uploads).where(uploads.c.id == upload_id))
        return parts

    # What the sweeper does.

    def expired(self) -> list[str]:
        """Return the uploads whose time is over."""
        with self.database.read() as connection:
            return list(connection.execute(select(uploads.c.id).where(uploads.c.expires_at < now())).scalars())

    def remove_expired(self, upload_id: str) -> list[str]:
        """Delete an upload, unless more of it has come meanwhile; returns its parts, to be discarded."""
        over = select(uploads.c.id).where(uploads.c.id == upload_id, uploads.c.expires_at < now()).with_for_update()
        with self.database.write() as connection:
            if connection.execute(over).first() is None:
                return []
            parts = self._forget_parts(connection, upload_id)
            connection.execute(delete(uploads).where(uploads.c.id == upload_id))
        return parts

    def named(self, names: list[str]) -> set[str]:
        """Return those of the names that a part has."""
        with self.database.read() as connection:
            query = select(upload_parts.c.name).where(upload_parts.c.name.in_(names))
            return set(connection.execute(query).scalars())

    def _insert(self, connection: Connection, tenant: Tenant, lifetime: float, **values: Any) -> ResumableUpload:
        values |= {"id": new_id("upload"), "tenant": tenant.name, "created_at": now(), "expires_at": now() + lifetime}
        return self.record.of(connection.execute(insert(uploads).values(**values).returning(*uploads.c)).one())

    @staticmethod
    def _forget_parts(connection: Connection, upload_id: str) -> list[str]:
        gone = delete(upload_parts).where(upload_parts.c.upload == upload_id).returning(upload_parts.c.name)
        return list(connection.execute(gone).scalars())

    @staticmethod
    def _mine(tenant: Tenant, upload_id: str) -> ColumnElement[bool]:
        return (uploads.c.tenant == tenant.name) & (uploads.c.id == upload_id)
