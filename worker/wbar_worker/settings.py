"""The settings of a worker process, beside the addresses of the store."""

import os
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from wbar_store.settings import StoreSettings
from wbar_training.uploads.limits import UploadLimits
from wbar_worker import host_memory

GIB = 1024**3
INGEST_SHARE = 0.5  # of the memory that is there: the rest is for training processes and for the system
LEAST_INGEST, MOST_INGEST = 1 * GIB, 16 * GIB  # torch alone takes a few hundred MiB


class WorkerSettings(StoreSettings):
    """Read from `WBAR_…` environment variables."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPUs where there are any.")
    slots: int | None = Field(None, ge=1, description="Jobs at a time; default: one per GPU, one on the CPU.")
    threads: int | None = Field(None, ge=1, description="CPU threads per job; part of what makes results repeatable.")
    loaders: int = Field(
        2, ge=0, description="DataLoader workers per job, where images are cropped or changed one by one."
    )
    lease_seconds: float = Field(20.0, gt=0, description="A job whose worker is silent for longer is queued again.")
    save_every_seconds: float = Field(60.0, ge=0, description="The longest time between resumable states.")
    drain_seconds: float = Field(30.0, gt=0, description="How long a stopping worker waits for states to be saved.")
    stall_seconds: float = Field(1800.0, gt=0, description="A training process that is silent for longer is ended.")
    max_job_seconds: float | None = Field(
        None,
        gt=0,
        description="The longest that any job may run, all its attempts together; default: as long as it takes.",
    )
    signing_key: Path | None = Field(
        None,
        description="A private key (EC P-256, PEM, no password) that results are signed with; default: nothing is signed.",
    )
    sweep_seconds: float = Field(2.0, gt=0, description="Time between two looks of the sweeper.")
    webhook_seconds: float = Field(
        10.0,
        gt=0,
        description="How long sending one webhook's message may take, from its name's look-up to the answer.",
    )
    webhook_backoff_seconds: float = Field(
        5.0,
        gt=0,
        description="Time until a message that failed is sent again; it doubles with each attempt, up to two hours.",
    )
    ingest_slots: int = Field(2, ge=1, description="Uploads validated at a time.")
    ingest_seconds: float = Field(3600.0, gt=0, description="Time limit for validating one upload.")
    ingest_memory: int | None = Field(
        None,
        gt=0,
        description="Memory limit for validating one upload, and for one merge, in bytes; default: half of the "
        "machine's or container's memory over the ingest slots, at least 1 GiB and at most 16 GiB.",
    )
    archive_bytes: int = Field(UploadLimits.bytes, gt=0, description="What a dataset archive may unpack to.")
    archive_files: int = Field(UploadLimits.files, gt=0, description="How many files a dataset archive may hold.")
    image_pixels: int = Field(UploadLimits.pixels, gt=0, description="How many pixels one image may have.")
    header_bytes: int = Field(
        UploadLimits.header_bytes,
        gt=0,
        description="How long a safetensors header, a checkpoint's pickle or a table of labels may be, in bytes.",
    )
    checkpoint_tensors: int = Field(UploadLimits.tensors, gt=0, description="How many tensors a checkpoint may have.")

    timm: bool = Field(
        True,
        description="Whether uploads may be timm's networks, where timm is installed. Once one was, an ingest worker makes a "
        "table of them in the scratch folder: minutes of one core, at the lowest priority.",
    )

    transformers: bool = Field(
        True,
        description="Whether `GET /v1/architectures` lists the image classifiers of transformers, where an ingest worker has "
        "it installed: half a minute of one core, at the lowest priority, once for each of its versions. Such a worker also "
        "loads transformers when it starts (65 MiB), so that uploads of its folders are ready a second sooner.",
    )
    smp: bool = Field(
        True,
        description="Likewise for the networks of segmentation-models-pytorch: some seconds of one core.",
    )

    @property
    def tables(self) -> Path | None:
        """The folder of tables of what is installed; None where none is wanted."""
        return self.scratch / "architectures" if self.timm else None

    @property
    def upload_limits(self) -> UploadLimits:
        """The limits that readers of uploads keep."""
        return UploadLimits(
            bytes=self.archive_bytes,
            files=self.archive_files,
            pixels=self.image_pixels,
            header_bytes=self.header_bytes,
            tensors=self.checkpoint_tensors,
        )

    @cached_property
    def memory_per_ingest(self) -> int:
        """Bytes of heap that validating one upload may take: `ingest_memory`, or its default on this machine."""
        if self.ingest_memory is not None:
            return self.ingest_memory
        share = int(INGEST_SHARE * host_memory.available() / self.ingest_slots)
        return min(MOST_INGEST, max(LEAST_INGEST, share))

    @cached_property
    def cpus(self) -> int:
        """The number of CPUs that this process may use."""
        return len(os.sched_getaffinity(0))
