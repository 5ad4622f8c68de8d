"""The settings of the API process, beside those of the store."""

from pydantic import Field

from wbar_store.settings import StoreSettings

GIB = 1024**3


class ServiceSettings(StoreSettings):
    """The address, the limits of uploads, and the places that datasets may be named in; from `WBAR_…` variables."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)
    fd: int | None = Field(None, description="A listening socket to take over, instead of host and port.")
    max_checkpoint_bytes: int = Field(20 * GIB, gt=0)
    max_dataset_bytes: int = Field(100 * GIB, gt=0)
    client_timeout: float = Field(
        20.0, gt=0, description="Seconds for a request's headers; three times as long between two pieces of a body."
    )
