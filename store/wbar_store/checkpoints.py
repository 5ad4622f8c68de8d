"""Checkpoints: created when the bytes are durable, validated by a worker, deleted when no job needs them."""

from pydantic import BaseModel, ConfigDict
from sqlalchemy import insert

from wbar.checkpoints import Checkpoint, CheckpointFacts, NetworkArchitecture, Purpose
from wbar.errors import CheckpointNotTrainable
from wbar.spec import StoredWeights
from wbar_store.blobs import Received
from wbar_store.claims import Claim
from wbar_store.database import Tenant, now, rfc3339
from wbar_store.ids import new_id
from wbar_store.tables import checkpoints, jobs
from wbar_store.validated_uploads import UploadRecord, UploadRepository, expiry


class GivenNetwork(BaseModel):
    """The architecture and number of classes that the upload named; None: to be read off the tensors.

    purpose: `merge`: tensors of no known network are taken, too.
    """

    model_config = ConfigDict(frozen=True)

    architecture: str | None = None
    num_classes: int | None = None
    purpose: Purpose = "train"


class CheckpointRecord(UploadRecord):
    """A row of `checkpoints`.

    sha256: of the uploaded bytes.
    weights: the blob of the same tensors as safetensors, once it is ready.
    facts: about the tensors, once it is ready.
    """

    bytes: int
    sha256: str
    weights: str | None
    given: GivenNetwork
    facts: CheckpointFacts | None

    @property
    def archive(self) -> str | None:
        """The blob of the archive, of a ready checkpoint that was uploaded as a folder; None of others."""
        return self.content if self.facts is not None and self.facts.format in ("zip", "tar") else None

    @property
    def blobs(self) -> list[str]:
        """The blobs that the row keeps alive."""
        return [blob for blob in (self.content, self.weights) if blob]

    def stored(self) -> StoredWeights:
        """Return the checkpoint as a JobSpec names it. Only of a ready one. Raises CheckpointNotTrainable."""
        assert self.facts is not None
        assert self.weights is not None
        if self.facts.network is None:
            raise CheckpointNotTrainable(
                f"{self.id} was uploaded for merging and is of no network that this service knows: it cannot be trained"
            )
        return StoredWeights(
            id=self.id,
            sha256=self.sha256,
            blob=self.weights,
            prefix=self.facts.prefix,
            network=self.facts.network,
            pretrained=self.facts.pretrained,
        )

    def to_api(self) -> Checkpoint:
        """Return the checkpoint as the API sends it."""
        facts = self.facts
        architecture = None
        if facts is not None and facts.network is not None:
            architecture = NetworkArchitecture(
                name=facts.network.name,
                num_classes=facts.network.num_classes,
                channels=facts.network.channels,
                image_size=facts.network.image_size,
                source=facts.source,
                ambiguous_with=facts.ambiguous_with,
            )
        return Checkpoint(
            id=self.id,
            name=self.name,
            status=self.status,
            format=facts.format if facts else None,
            bytes=self.bytes,
            sha256=self.sha256,
            parameters=facts.parameters if facts else None,
            tensors=facts.tensors if facts else None,
            architecture=architecture,
            pretrained=facts.pretrained if facts else None,
            adapter=facts.adapter if facts else False,
            error=self.error,
            expires_at=rfc3339(self.expires_at),
            created_at=rfc3339(self.created_at),
        )


class Checkpoints(UploadRepository[CheckpointRecord]):
    """The checkpoints of all tenants."""

    table, kind, noun, record = checkpoints, "ckpt", "checkpoint", CheckpointRecord
    blob_columns = (checkpoints.c.content, checkpoints.c.weights)
    job_column = jobs.c.checkpoint

    def create(
        self, tenant: Tenant, name: str, received: Received, given: GivenNetwork, expires_after: float | None = None
    ) -> CheckpointRecord:
        """Insert a checkpoint to be validated. The caller holds the blob meanwhile, and notifies once the row is committed.

        expires_after: seconds until it is deleted.
        """
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
            "expires_at": expiry(expires_after),
            "created_at": now(),
        }
        with self.database.write() as connection:
            return self.record.of(
                connection.execute(insert(checkpoints).values(**values).returning(*checkpoints.c)).one()
            )

    def accept(self, claim: Claim, facts: CheckpointFacts, weights: str) -> bool:
        """Make the checkpoint `ready`. False if the claim is stale.

        weights: the blob of its tensors as safetensors.
        """
        return self._settle(claim.id, self._of_claim(claim), "ready", weights=weights, facts=facts.document())
