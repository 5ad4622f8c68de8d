"""Checkpoints: created when the bytes are durable, judged by a worker, deleted when no job needs them."""

from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import insert

from wbar.checkpoints import Checkpoint, NetworkArchitecture
from wbar.spec import Network, StoredWeights
from wbar_store.blobs import Received
from wbar_store.claims import Claim
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.judging import JudgedRecord, JudgedRepository
from wbar_store.tables import checkpoints, jobs

Format = Literal["safetensors", "pytorch"]
Source = Literal["given", "detected"]


class GivenNetwork(BaseModel):
    """What the upload said of itself; None: to be read off the tensors."""

    model_config = ConfigDict(frozen=True)

    architecture: str | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class JudgedCheckpoint:
    """What a worker found. weights: the blob of the same tensors as safetensors; prefix: of the uploaded names."""

    format: Format
    parameters: int
    tensors: int
    network: Network
    source: Source
    prefix: str
    weights: str


class CheckpointRecord(JudgedRecord):
    """sha256: of the uploaded bytes. weights, network, source and prefix: once it is ready."""

    format: Format | None
    bytes: int
    sha256: str
    weights: str | None
    given: GivenNetwork
    parameters: int | None
    tensors: int | None
    network: Network | None
    source: Source | None
    prefix: str | None

    @property
    def blobs(self) -> list[str]:
        return [blob for blob in (self.content, self.weights) if blob]

    def stored(self) -> StoredWeights:
        """What a JobSpec says of it. Only of a ready one."""
        assert self.network is not None
        assert self.weights is not None
        return StoredWeights(
            id=self.id, sha256=self.sha256, blob=self.weights, prefix=self.prefix or "", network=self.network
        )

    def to_api(self) -> Checkpoint:
        architecture = None
        if self.network is not None and self.source is not None:
            architecture = NetworkArchitecture(
                name=self.network.name,
                num_classes=self.network.num_classes,
                channels=self.network.channels,
                image_size=self.network.image_size,
                source=self.source,
            )
        return Checkpoint(
            id=self.id,
            name=self.name,
            status=self.status,
            format=self.format,
            bytes=self.bytes,
            sha256=self.sha256,
            parameters=self.parameters,
            tensors=self.tensors,
            architecture=architecture,
            error=self.error,
            created_at=rfc3339(self.created_at),
        )


class Checkpoints(JudgedRepository[CheckpointRecord]):
    table, noun, record = checkpoints, "checkpoint", CheckpointRecord
    blob_columns = (checkpoints.c.content, checkpoints.c.weights)
    job_column = jobs.c.checkpoint

    def create(self, tenant: Tenant, name: str, received: Received, given: GivenNetwork) -> CheckpointRecord:
        """The caller holds the blob meanwhile and notifies once it is committed."""
        values = {
            "id": new_id("ckpt"),
            "tenant": tenant.name,
            "name": name,
            "status": "processing",
            "bytes": received.bytes,
            "sha256": received.sha256,
            "content": received.sha256,
            "given": given.model_dump(),
            "attempts": 0,
            "created_at": now(),
        }
        with self.database.write() as connection:
            return self.record.of(
                connection.execute(insert(checkpoints).values(**values).returning(*checkpoints.c)).one()
            )

    def accept(self, claim: Claim, judged: JudgedCheckpoint) -> bool:
        """It is ready. False where this attempt is no longer the one that may judge."""
        return self._write(claim, status="ready", **asdict(judged))
