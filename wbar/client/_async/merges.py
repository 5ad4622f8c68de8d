"""`client.merges`."""

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from anyio import sleep

from wbar.client._async.resource import AsyncResource
from wbar.client._async.transfers import download
from wbar.client.addresses import segment
from wbar.lists import Page
from wbar.merges import ENDED, Merge, MergeStatus
from wbar.transfers import Step


class AsyncMerges(AsyncResource):
    """Merges checkpoints without training, and downloads the result."""

    async def create(self, checkpoints: Sequence[str], *, idempotency_key: str | None = None, **fields: Any) -> Merge:
        """Merge checkpoints, results of jobs, snapshots and merges, by their ids.

        fields: those of wbar.merges.MergeRequest (method, base, last, dtype, format, max_shard_bytes,
            name, expires_after).
        idempotency_key: default: one of its own for each call.
        """
        return await self._create("/v1/merges", Merge, {"checkpoints": [*checkpoints], **fields}, idempotency_key)

    async def get(self, merge_id: str) -> Merge:
        """Return one merge. Raises NotFound."""
        return await self._get(f"/v1/merges/{segment(merge_id)}", Merge)

    async def list(
        self,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
        status: MergeStatus | None = None,
    ) -> Page[Merge]:
        """Return one page of merges, newest first unless `order` is `asc`. status: keep those in it."""
        return await self._get("/v1/merges", Page[Merge], limit=limit, after=after, order=order, status=status)

    def iterate(self, order: str | None = None, status: MergeStatus | None = None) -> AsyncIterator[Merge]:
        """Return an iterator over all merges (or those in a status), newest first unless `order` is `asc`."""
        return self._pages("/v1/merges", Page[Merge], order=order, status=status)

    async def wait(self, merge_id: str, timeout: float | None = None, poll: float = 0.2) -> Merge:
        """Poll until the merge has ended in any status. Raises TimeoutError after `timeout` seconds, if given."""
        deadline = None if timeout is None else monotonic() + timeout
        while True:
            merge = await self.get(merge_id)
            if merge.status in ENDED:
                return merge
            if deadline is not None and monotonic() > deadline:
                raise TimeoutError(f"{merge_id} is still {merge.status} after {timeout:g} s")
            await sleep(poll)

    async def cancel(self, merge_id: str) -> Merge:
        """End a merge now. Raises InvalidTransition once it has ended otherwise."""
        answer = await self._client.request("POST", f"/v1/merges/{segment(merge_id)}/cancel")
        return Merge.model_validate(answer.json())

    async def delete(self, merge_id: str) -> None:
        """Delete a merge that has ended. Raises InvalidTransition before."""
        await self._client.request("DELETE", f"/v1/merges/{segment(merge_id)}")

    async def download(self, merge_id: str, path: str | os.PathLike[str], step: Step | None = None) -> Path:
        """Download the merged weights to `path`, of the format huggingface a zip; see Jobs.download."""
        return await download(self._client, f"/v1/merges/{segment(merge_id)}/weights", Path(path), step)
