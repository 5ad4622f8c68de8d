"""`client.datasets`."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

from anyio.to_thread import run_sync as in_thread

from wbar.client._async.resource import AsyncResource
from wbar.client._async.transfers import upload
from wbar.client.addresses import segment
from wbar.datasets import Dataset
from wbar.lists import Page
from wbar.states import UploadStatus
from wbar.transfers import Step, archived


class AsyncDatasets(AsyncResource):
    """Creates, lists and deletes datasets."""

    async def create(
        self,
        source: str | os.PathLike[str],
        *,
        name: str | None = None,
        task: Literal[
            "classification", "multilabel", "attributes", "segmentation", "detection", "regression", "unlabelled"
        ] = "classification",
        void_label: int | None = None,
        max_train_images: int | None = None,
        expires_after: int | None = None,
        wait: bool = True,
        timeout: float = 3600.0,
        step: Step | None = None,
        idempotency_key: str | None = None,
    ) -> Dataset:
        """Create a dataset and, unless `wait` is false, wait until it is ready.

        source: a built-in set (`builtin:digits`), a location that the operator allows (`file://…`, `s3://…`), or the
            path of an archive or of a folder with `train/<class>/` images; with task `multilabel`, with `train/` images
            and `labels.csv`; with task `attributes`, with `train/` images and `attributes.csv`; with task
            `segmentation`, with `train/images/`, `train/masks/` and `classes.txt`; with task `detection`, with
            `train/images/` and COCO's `train/annotations.json`; for both, Pascal VOC's own folders; with task
            `regression`, with `train/` images and `targets.csv`.
        void_label: of segmentation, the label of pixels that belong to no class; default: 255.
        max_train_images: of a source by name: keep this many training images.
        expires_after: seconds until the service deletes it, or once no job needs it any more.
        step: called with the bytes sent and the bytes in all.
        idempotency_key: default: one of its own for each call.

        Raises the class of wbar.errors.Rejected that says why the dataset was rejected, and TimeoutError after
        `timeout` seconds.
        """
        common = {"task": task, "expires_after": expires_after, "void_label": void_label}
        if isinstance(source, str) and source.startswith(("builtin:", "file://", "s3://")):
            body = {"source": source} | ({"max_train_images": max_train_images} if max_train_images else {})
            created = await self._create("/v1/datasets", Dataset, body, idempotency_key, name=name, **common)
        else:
            archive = await in_thread(archived, Path(source))
            params = {"name": name or Path(source).name, **common}
            with archive as path:
                made = await upload(self._client, "/v1/datasets", path, params, step, idempotency_key)
            created = Dataset.model_validate_json(made)
        return await self._wait_ready(lambda: self.get(created.id), timeout) if wait else created

    async def get(self, dataset_id: str) -> Dataset:
        """Return one dataset. Raises NotFound."""
        return await self._get(f"/v1/datasets/{segment(dataset_id)}", Dataset)

    async def list(
        self,
        limit: int = 20,
        after: str | None = None,
        order: str | None = None,
        status: UploadStatus | None = None,
    ) -> Page[Dataset]:
        """Return one page of datasets, newest first unless `order` is `asc`. status: keep those in it."""
        return await self._get("/v1/datasets", Page[Dataset], limit=limit, after=after, order=order, status=status)

    def iterate(self, order: str | None = None, status: UploadStatus | None = None) -> AsyncIterator[Dataset]:
        """Return an iterator over all datasets (or those in a status), newest first unless `order` is `asc`."""
        return self._pages("/v1/datasets", Page[Dataset], order=order, status=status)

    async def delete(self, dataset_id: str) -> None:
        """Delete a dataset. Raises InUse while a job that has not ended needs it."""
        await self._client.request("DELETE", f"/v1/datasets/{segment(dataset_id)}")
