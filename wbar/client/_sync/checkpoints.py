# Derived from wbar/client/_async/checkpoints.py by `make client` (tools/derive_client.py): edit that one.
"""`client.checkpoints`."""

import os
from collections.abc import Iterator
from pathlib import Path

from wbar.checkpoints import Checkpoint, Purpose
from wbar.client._sync.resource import Resource
from wbar.client._sync.transfers import download, upload
from wbar.client.addresses import segment
from wbar.lists import Page
from wbar.states import UploadStatus
from wbar.transfers import Step


class Checkpoints(Resource):
    """Uploads, lists, downloads and deletes checkpoints."""

    def create(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        architecture: str | None = None,
        num_classes: int | None = None,
        purpose: Purpose | None = None,
        expires_after: int | None = None,
        wait: bool = True,
        timeout: float = 600.0,
        step: Step | None = None,
        idempotency_key: str | None = None,
    ) -> Checkpoint:
        """Upload a safetensors, PyTorch or `.pt2` file (torch.export) and, unless `wait` is false, wait until it is ready.

        purpose: `merge` takes the tensors of a network that the service does not know, and LoRA adapters, too: they are
            merged, not trained.
        expires_after: seconds until the service deletes it, or once no job needs it any more.
        step: called with the bytes sent and the bytes in all.
        idempotency_key: default: one of its own for each call.

        The file's sha-256 is sent along and checked by the service. Raises the class of wbar.errors.Rejected that says
        why the file was rejected, and TimeoutError after `timeout` seconds.
        """
        path = Path(path)
        params = {
            "name": name or path.name,
            "architecture": architecture,
            "num_classes": num_classes,
            "purpose": purpose,
            "expires_after": expires_after,
        }
        made = upload(self._client, "/v1/checkpoints", path, params, step, idempotency_key)
        created = Checkpoint.model_validate_json(made)
        return self._wait_ready(lambda: self.get(created.id), timeout) if wait else created

    def create_from(
        self,
        source: str,
        *,
        name: str | None = None,
        purpose: Purpose | None = None,
        expires_after: int | None = None,
        wait: bool = True,
        timeout: float = 600.0,
        idempotency_key: str | None = None,
    ) -> Checkpoint:
        """Make a checkpoint of the weights of a job or a merge, without download and upload: to go on from there.

        source: `job_…` or `merge_…`, which has succeeded. The other arguments and what is raised: as of `create`.
        """
        params = {"name": name, "purpose": purpose, "expires_after": expires_after}
        created = self._create("/v1/checkpoints", Checkpoint, {"source": source}, idempotency_key, **params)
        return self._wait_ready(lambda: self.get(created.id), timeout) if wait else created

    def get(self, checkpoint_id: str) -> Checkpoint:
        """Return one checkpoint. Raises NotFound."""
        return self._get(f"/v1/checkpoints/{segment(checkpoint_id)}", Checkpoint)

    def list(
        self,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
        status: UploadStatus | None = None,
    ) -> Page[Checkpoint]:
        """Return one page of checkpoints, newest first unless `order` is `asc`. status: keep those in it."""
        return self._get("/v1/checkpoints", Page[Checkpoint], limit=limit, after=after, order=order, status=status)

    def iterate(self, order: str | None = None, status: UploadStatus | None = None) -> Iterator[Checkpoint]:
        """Return an iterator over all checkpoints (or those in a status), newest first unless `order` is `asc`."""
        return self._pages("/v1/checkpoints", Page[Checkpoint], order=order, status=status)

    def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint. Raises InUse while a job that has not ended needs it."""
        self._client.request("DELETE", f"/v1/checkpoints/{segment(checkpoint_id)}")

    def download(self, checkpoint_id: str, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download the bytes as they were uploaded; see Jobs.download."""
        return download(self._client, f"/v1/checkpoints/{segment(checkpoint_id)}/content", Path(path), step)
