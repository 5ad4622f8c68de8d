"""The settings of the API process, beside those of the store."""

from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from wbar_store.quotas import Quota
from wbar_store.settings import StoreSettings

GIB = 1024**3


class ServiceSettings(StoreSettings):
    """The address, the limits of uploads, and the places that datasets may be named in; from `WBAR_…` variables."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, lt=65536)
    fd: int | None = Field(None, description="A listening socket to take over, instead of host and port.")
    max_checkpoint_bytes: int = Field(20 * GIB, gt=0)
    max_dataset_bytes: int = Field(100 * GIB, gt=0)
    reads_per_minute: int | None = Field(
        None, ge=1, description="Requests that read, per API key and process; default: no limit."
    )
    writes_per_minute: int | None = Field(
        None, ge=1, description="Requests that change something, per API key; default: no limit."
    )
    max_tenant_bytes: int | None = Field(
        None, gt=0, description="Bytes of checkpoints, datasets and uploads that a tenant may keep; default: no limit."
    )
    uploads_expire_after: int = Field(
        7 * 24 * 3600, gt=0, description="Seconds after its last byte until an upload that is not used is deleted."
    )
    max_tenant_jobs: int = Field(10_000, gt=0, description="Jobs of a tenant that wait, run or are paused.")
    max_study_jobs: int = Field(100, gt=0, description="Jobs of one study.")
    max_replicas: int = Field(16, gt=0, le=1024, description="Replicas of one job (`method.replicas`).")
    max_tenant_webhooks: int = Field(20, gt=0, description="Webhooks of a tenant.")
    metrics_token: SecretStr | None = Field(
        None, description="What `GET /metrics` asks for, as a bearer token; default: nothing, since it names no tenant."
    )
    client_timeout: float = Field(
        20.0, gt=0, description="Seconds for a request's headers; three times as long between two pieces of a body."
    )

    downloads: Literal["api", "x-accel-redirect", "x-sendfile", "presigned"] = Field(
        "api",
        description="Who sends the bytes of whole files: the API; the web server before it (nginx by X-Accel-Redirect, "
        "Apache and lighttpd by X-Sendfile); or the bucket, by a redirect to a presigned URL.",
    )
    accel_prefix: str = Field(
        "/wbar-blobs/", pattern="^/([^/]+/)+$", description="nginx's internal location of the folder of WBAR_BLOBS_URL."
    )

    @model_validator(mode="after")
    def _downloads_fit_the_blobs(self) -> Self:
        kind = {"api": "", "presigned": "s3://"}.get(self.downloads, "file://")
        if not self.blobs_url.startswith(kind):
            raise ValueError(
                f"WBAR_DOWNLOADS={self.downloads} needs blobs in {kind}…, and WBAR_BLOBS_URL is {self.blobs_url}"
            )
        return self

    @property
    def quotas(self) -> Quota:
        """The most that each tenant may have."""
        return Quota(bytes=self.max_tenant_bytes, jobs=self.max_tenant_jobs, webhooks=self.max_tenant_webhooks)
