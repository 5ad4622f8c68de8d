"""The architectures that can be fine-tuned: ours and torchvision's, and what workers have of further libraries."""

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from wbar.catalog import ARCHITECTURES, Library, Outputs
from wbar_service.auth import AuthenticatedRoute, StoreOf, TenantOf
from wbar_service.problems import responses
from wbar_service.query_parameters import DIGITS

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
    peak_lr: float = Field(
        description="The customary peak learning rate at batch 128, from which `auto` follows; at most 0.005 with "
        "`batch_norm: frozen` and SGD, but for masks and boxes."
    )
    reproducible: bool = Field(
        description="Whether a GPU run can be repeated bit for bit; false also where it is not known."
    )
    library: Library = Field(
        description="Whose class the network is: results load into it; `smp` is segmentation-models-pytorch. Sizes of "
        "transformers' are those of the default configuration; the one that is uploaded decides."
    )
    outputs: Outputs = Field(
        description="What it answers with: one answer for the image, one for every pixel (segmentation), or boxes (detection)."
    )


class Architectures(BaseModel):
    """One page of them: ours and torchvision's by name, then those of installed libraries by name."""

    object: Literal["list"] = "list"
    data: list[ArchitectureEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None


@router.get("", response_model=Architectures, responses=responses(422))
def list_architectures(
    store: StoreOf,
    _tenant: TenantOf,
    q: Annotated[
        str | None, Query(max_length=128, description="Words that the name holds, in any order: `vit 224`.")
    ] = None,
    limit: Annotated[int, Field(ge=1, le=1000), DIGITS, Query()] = 200,
    after: Annotated[str | None, Query(max_length=128, description="`last_id` of the page before.")] = None,
) -> Architectures:
    """List the architectures, or those whose names hold the words of `q`."""
    words = (q or "").lower().split()
    ours = [name for name in ARCHITECTURES if all(word in name for word in words)]
    passed = after is not None and after not in ARCHITECTURES  # what is announced comes last
    found = [] if passed else [ARCHITECTURES[name] for name in ours if after is None or name > after]
    if len(found) <= limit:
        found += store.architectures.page(words, after if passed else None, limit + 1 - len(found))
    data = [ArchitectureEntry(id=one.name, outputs=one.outputs, **asdict(one)) for one in found[:limit]]
    return Architectures(
        data=data,
        has_more=len(found) > limit,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )
