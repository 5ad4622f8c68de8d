"""An upload that arrives in parts (tus 1.0.0), as the API sends it, and the metadata that tus keeps with it.

A finished upload is named by its id where a checkpoint or dataset is created; then it is used, and its bytes are theirs.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from wbar.request import RequestModel

TUS_VERSION = "1.0.0"
CONTENT_TYPE = "application/offset+octet-stream"
UPLOAD_ID = r"^upload_[0-9a-z]+$"

Status = Literal["receiving", "finished", "used"]


class UploadReference(RequestModel):
    """The content of a new checkpoint or dataset: a finished upload."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"upload": "upload_0mk3q8v6zr5d2a7x9c4t"}]})

    upload: str = Field(
        pattern=UPLOAD_ID, max_length=64, description="The id of a finished upload; it can be used once."
    )


class Upload(BaseModel):
    """An upload that arrives in parts.

    It is `receiving` until `offset` is `length`, then `finished`, and `used` once a checkpoint or dataset was made of it.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "upload_0mk3q8v6zr5d2a7x9c4t",
                "object": "upload",
                "status": "receiving",
                "offset": 8388608,
                "length": 102400000,
                "partial": False,
                "metadata": {"filename": "resnet50.pth"},
                "sha256": None,
                "expires_at": "2026-11-28T09:00:00.000000Z",
                "created_at": "2026-11-21T09:00:00.000000Z",
            }
        }
    )

    id: str
    object: Literal["upload"] = "upload"
    status: Status
    offset: int = Field(description="Bytes that are kept: the next PATCH goes on here.")
    length: int | None = Field(description="Bytes in all; null until it is known (`Upload-Defer-Length`).")
    partial: bool = Field(description="Whether it is a part of another upload to come (`Upload-Concat: partial`).")
    metadata: dict[str, str] = Field(description="`Upload-Metadata`, decoded.")
    sha256: str | None = Field(description="As it was announced, or as it was found when the upload was used.")
    expires_at: str = Field(description="Deleted within ten minutes after, unless more of it comes before.")
    created_at: str


def encode_metadata(values: Mapping[str, str]) -> str:
    """Return the values as the header Upload-Metadata."""
    return ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())


def decode_metadata(header: str) -> dict[str, str]:
    """Return the values of a header Upload-Metadata; a key without a value has an empty one.

    Raises ValueError for a header that is not of tus's form, and for a value that is not UTF-8.
    """
    values: dict[str, str] = {}
    for pair in header.split(",") if header.strip() else []:
        key, _, encoded = pair.strip().partition(" ")
        if not key or not key.isascii() or key in values:
            raise ValueError(f"{pair[:80]!r} has no key of its own")
        try:
            values[key] = base64.b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f"the value of {key[:80]!r} is not UTF-8 in base64") from None
    return values
