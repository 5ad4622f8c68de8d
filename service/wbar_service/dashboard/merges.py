"""The pages of merges: what is merged and how, asked by a form; how far each is, and its weights."""

import re
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from wbar.errors import Conflict, NotFound, Refused
from wbar.merges import DecayShape, MergeDtype, MergeFormat, MergeRequest
from wbar_service.auth import StoreOf, TenantOf
from wbar_service.dashboard.pages import page
from wbar_service.dashboard.route import PageRoute, is_fragment
from wbar_service.merges.creating import insert_merge
from wbar_store.database import Tenant
from wbar_store.documents import readable
from wbar_store.merges import MergeRecord
from wbar_store.repository import PageRequest
from wbar_store.store import Store

router = APIRouter(include_in_schema=False, route_class=PageRoute)
ROWS = 50
After = Annotated[str | None, Query(max_length=64)]
Typed = Annotated[str, Form(max_length=20_000)]
Method = Literal["mean", "linear", "cosine", "1-sqrt", "ema", "task_arithmetic", "ties", "dare"]
METHODS: dict[Method, str] = {
    "mean": "mean – all alike, or by the weights below",
    "linear": "mean along a run, weighted as a linear decay of the rate would",
    "cosine": "mean along a run, weighted as a cosine decay would",
    "1-sqrt": "mean along a run, weighted as a 1 − √ decay would",
    "ema": "exponential mean along a run, with the decay below",
    "task_arithmetic": "task arithmetic, or WiSE-FT's line: base + λ × difference",
    "ties": "TIES: trimmed differences with the elected sign",
    "dare": "DARE: differences with a share dropped at random",
}
FORMATS: dict[MergeFormat, str] = {
    "safetensors": "safetensors – the weights alone",
    "huggingface": "a folder with config.json and tokenizer, zipped",
}
COMMON = ("last", "dtype", "format", "max_shard_bytes", "name")
EMPTY = {
    "checkpoints": "", "last": "", "base": "", "method": "mean", "weights": "", "ema": "", "scale": "", "density": "",
    "drop": "", "lora_rank": "", "dtype": "", "format": "", "max_shard_bytes": "", "name": "",
}  # fmt: skip


@router.get("/merges")
def show_merges(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    after: After = None,
    checkpoints: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    """Show the tenant's merges and the form of a new one; as a fragment the table alone. checkpoints: begins the form."""
    return _list(request, store, tenant, after, checkpoints=checkpoints)


@router.post("/merges")
def create_merge(
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    checkpoints: Typed = "",
    last: Typed = "",
    base: Typed = "",
    method: Annotated[Method, Form()] = "mean",
    weights: Typed = "",
    ema: Typed = "",
    scale: Typed = "",
    density: Typed = "",
    drop: Typed = "",
    lora_rank: Typed = "",
    dtype: Typed = "",
    form: Annotated[str, Form(alias="format", max_length=20)] = "",
    max_shard_bytes: Typed = "",
    name: Typed = "",
) -> Response:
    """Create a merge and show it."""
    typed = {
        "checkpoints": checkpoints, "last": last, "base": base, "method": method, "weights": weights, "ema": ema,
        "scale": scale, "density": density, "drop": drop, "lora_rank": lora_rank, "dtype": dtype, "format": form,
        "max_shard_bytes": max_shard_bytes, "name": name,
    }  # fmt: skip
    try:
        asked = MergeRequest.model_validate(_body(typed))
        with store.database.write():
            made = insert_merge(store, tenant, asked, request.app.state.settings.quotas)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in get_args(Method))
        message = first["msg"].removeprefix("Value error, ")
        return _list(request, store, tenant, None, f"{place}: {message}" if place else message, 422, **typed)
    except Refused as problem:  # an id that is not there, something unfinished, a quota
        return _list(request, store, tenant, None, problem.detail, problem.status, **typed)
    store.notify(made.id)
    return RedirectResponse(f"/merges/{made.id}", 303)


def _body(typed: dict[str, str]) -> dict[str, Any]:
    """Return the request that a form's texts ask for; what the method does not know is left out."""
    method, given = typed["method"], {name: text.strip() for name, text in typed.items() if text.strip()}
    kind = method if method in ("task_arithmetic", "ties", "dare") else "mean"
    asked: dict[str, Any] = {"type": kind}
    if kind == "mean" and method in get_args(DecayShape):
        asked["shape"] = method
    if kind == "mean" and "lora_rank" in given:
        asked["lora_rank"] = given["lora_rank"]
    known = {"mean": ("weights",), "ema": ("ema",), "task_arithmetic": ("scale",), "ties": ("density", "scale"),
             "dare": ("drop", "scale")}.get(method, ())  # fmt: skip
    for option in known:
        if option in given:
            numbers = given[option].replace(",", " ").split()
            asked[option] = numbers if option == "weights" or len(numbers) > 1 else numbers[0]
    body: dict[str, Any] = {name: given[name] for name in COMMON if name in given}
    if kind != "mean" and "base" in given:
        body["base"] = given["base"]
    return {**body, "checkpoints": re.split(r"[\s,]+", given.get("checkpoints", "").strip()), "method": asked}


@router.get("/merges/{merge_id}")
def show_merge(merge_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Show a merge; as a fragment its state alone."""
    return _one(request, store, tenant, merge_id)


@router.post("/merges/{merge_id}/cancel")
def cancel_merge(merge_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """End a merge now."""
    try:
        _, blobs = store.merges.cancel(tenant, merge_id)
    except Conflict as problem:  # it has ended meanwhile
        return _one(request, store, tenant, merge_id, problem.detail, problem.status)
    store.blobs.collect([*blobs])
    return RedirectResponse(f"/merges/{merge_id}", 303)


@router.post("/merges/{merge_id}/delete")
def delete_merge(merge_id: str, request: Request, store: StoreOf, tenant: TenantOf) -> Response:
    """Delete a merge that has ended, and its weights."""
    try:
        with suppress(NotFound):  # deleted meanwhile
            store.blobs.collect(store.merges.remove(tenant, merge_id))
    except Conflict as problem:
        return _one(request, store, tenant, merge_id, problem.detail, problem.status)
    return RedirectResponse("/merges", 303)


def _list(
    request: Request,
    store: Store,
    tenant: Tenant,
    after: str | None,
    fault: str | None = None,
    status: int = 200,
    **typed: str,
) -> Response:
    rows = store.merges.page(tenant, PageRequest(ROWS, after))
    template = "_merge_rows.html" if is_fragment(request) else "merges.html"
    return page(
        request, template, status, rows=rows, shown=readable(rows.records, MergeRecord.to_api), fault=fault, after=after,
        methods=METHODS, dtypes=get_args(MergeDtype), formats=FORMATS, typed={**EMPTY, **typed},
    )  # fmt: skip


def _one(
    request: Request, store: Store, tenant: Tenant, merge_id: str, fault: str | None = None, status: int = 200
) -> Response:
    template = "_merge_state.html" if is_fragment(request) else "merge.html"
    return page(request, template, status, one=store.merges.get(tenant, merge_id).to_api(), fault=fault)
