"""A worker process as the API sends it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class GpuMemory(BaseModel):
    """The memory of one GPU, in bytes."""

    used: int
    total: int


class Worker(BaseModel):
    """A worker process that lives: what it takes, where it computes, and which of your jobs it runs."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": "train-4711@gpu-1",
                "object": "worker",
                "queue": "train",
                "device": "cuda",
                "slots": 2,
                "gpus": [{"used": 21474836480, "total": 85899345920}],
                "jobs": ["job_0mk3q8v3zr5d2a7x9c4t"],
            }
        }
    )

    id: str
    object: Literal["worker"] = "worker"
    queue: Literal["train", "ingest"] = Field(description="`train` runs jobs, `ingest` reads uploads.")
    device: Literal["cpu", "cuda"]
    slots: int = Field(description="How many jobs or uploads it takes at a time.")
    gpus: list[GpuMemory] = Field(default_factory=list, description="Of its host, whoever uses them.")
    jobs: list[str] = Field(description="Your jobs that it runs now.")
