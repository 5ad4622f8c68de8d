"""The architectures that can be fine-tuned."""

from dataclasses import asdict
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from wbar.catalog import ARCHITECTURES
from wbar_service.auth import AuthenticatedRoute, TenantOf
from wbar_service.problems import responses

router = APIRouter(
    prefix="/v1/architectures",
    tags=["architectures"],
    route_class=AuthenticatedRoute,
    responses=responses(401, 403, 429, 503),
)


class ArchitectureEntry(BaseModel):
    """One network that can be fine-tuned. Sizes are sides of square images in pixels."""

    id: str
    object: Literal["architecture"] = "architecture"
    name: str
    family: str
    size: int = Field(description="Side of the images that the published weights were trained on.")
    min_size: int = Field(description="Smallest side that it takes.")
    fixed_size: bool = Field(description="Whether a checkpoint takes only the size that it was trained at.")
    optimizer: Literal["sgd", "adamw"]
    peak_lr: float = Field(description="The customary peak learning rate at batch 128, from which `auto` follows.")
    reproducible: bool = Field(description="Whether a GPU run can be repeated bit for bit.")


class Architectures(BaseModel):
    """All of them, in one page."""

    object: Literal["list"] = "list"
    data: list[ArchitectureEntry]
    has_more: Literal[False] = False
    first_id: str
    last_id: str


@router.get("", response_model=Architectures)
def list_architectures(_tenant: TenantOf) -> Architectures:
    """List every architecture, in one page."""
    data = [ArchitectureEntry(id=one.name, **asdict(one)) for one in ARCHITECTURES.values()]
    return Architectures(data=data, first_id=data[0].id, last_id=data[-1].id)
