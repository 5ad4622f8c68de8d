"""The settings that every process of the service shares: the addresses of database, broker and blobs."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StoreSettings(BaseSettings):
    """Read from `WBAR_…` environment variables; the service's and the worker's settings extend it."""

    model_config = SettingsConfigDict(env_prefix="WBAR_", extra="ignore", populate_by_name=True)

    database_url: str = Field("sqlite:///wbar.db", description="sqlite:///… or postgresql://…")
    broker_url: str = Field("redis://127.0.0.1:6379/0", description="redis://… or redis+socket:///… (Redis or Valkey)")
    blobs_url: str = Field("file:///var/lib/wbar/blobs", description="file:///folder or s3://bucket/prefix")
    scratch: Path = Field(Path("/var/lib/wbar/scratch"), description="Local folder for files in the making.")
    otlp_endpoint: str | None = Field(
        None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="Where traces go; default: nothing is traced. The SDK reads this and its other variables itself.",
    )
    sources: list[str] = Field(
        default_factory=list,
        description='Roots that datasets may be named below: ["file:///data/", "s3://bucket/sets/"]; API and workers alike.',
    )
    webhooks_allow: list[IPv4Network | IPv6Network] = Field(
        default_factory=list,
        description='Networks beside the public one that webhooks may be sent to, also without TLS: ["10.1.0.0/16"].',
    )
