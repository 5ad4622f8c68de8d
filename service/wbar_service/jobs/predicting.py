"""`POST /v1/jobs/{id}/predict`: a job's networks answer about pictures, in a worker's isolated process.

The API loads no network: it puts the request into the broker, waits for the answer, and keeps nothing.
"""

from typing import Annotated, NoReturn

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, ValidationError
from starlette.datastructures import UploadFile

from wbar.datasets import output_names
from wbar.errors import (
    Busy,
    CheckpointNotReady,
    NotFound,
    NoWeights,
    PredictionFailed,
    TooLarge,
    Unavailable,
    ValidationFailed,
)
from wbar.measures import task_of
from wbar.predictions import (
    MOST_BOXES,
    MOST_BYTES,
    MOST_DRAWN_BYTES,
    MOST_DRAWS,
    MOST_IMAGES,
    NETWORK,
    Given,
    NotAnswered,
    PredictedNetwork,
    Predictions,
    PredictRequest,
    Wanted,
    network_name,
)
from wbar.recipe import Normalization
from wbar.recipe_defaults import told_apart
from wbar.results import JobResult
from wbar.spec import JobSpec, StoredWeights
from wbar_service.arriving import not_valid
from wbar_service.auth import ReadingRoute, StoreOf, TenantOf
from wbar_service.bodies import is_json, limited, with_small_body
from wbar_service.jobs.answers import predictions_of
from wbar_service.jobs.files import control_file, no_result, refuse_expired, swag_file
from wbar_service.jobs.target_units import units_of
from wbar_service.problems import responses
from wbar_service.schema import reference
from wbar_store.database import Tenant
from wbar_store.job_records import JobRecord
from wbar_store.notifier import PREDICT
from wbar_store.predictions import NotTaken, PredictionBox, TooManyAtOnce, WorkerGone
from wbar_store.store import Store

BODY_BYTES = 4 * MOST_BYTES // 3 + 64 * 1024  # in base64, with its JSON
PATIENCE, LIMIT = 10.0, 45.0  # seconds until a worker begins, and in all
TOP = 5  # classes that are named of an image, where nothing else is said

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=ReadingRoute, responses=responses(401, 403, 429, 503))


@router.post(
    "/{job_id}/predict",
    response_model=Predictions,
    responses=responses(400, 404, 409, 410, 413, 422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": reference(PredictRequest)},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": {
                                "type": "array",
                                "maxItems": MOST_IMAGES,
                                "items": {"type": "string", "format": "binary"},
                            }
                        },
                    }
                },
            },
        }
    },
)
async def predict_images(
    job_id: str,
    request: Request,
    store: StoreOf,
    tenant: TenantOf,
    network: Annotated[
        str,
        AfterValidator(network_name),
        Query(
            json_schema_extra={"pattern": NETWORK},
            description="`averaged`: w̄; `start`; `snapshot_n`: w_n with its own BatchNorm statistics; `control`, of a method "
            "with it; `swag`: of a job with `swag`, mean and standard deviation over the networks that it drew and measured, "
            "the first 20 of them.",
            examples=["snapshot_2"],
        ),
    ] = "averaged",
    top: Annotated[
        int | None,
        Query(
            ge=1,
            le=MOST_BOXES,
            description="The most probable classes of each image, or categories of each attribute (default: 5); the surest "
            "boxes (default: 100).",
        ),
    ] = None,
    score: Annotated[
        float | None,
        Query(ge=0, le=1, description="Of detection: the least score of a box. Default: 0.", examples=[0.5]),
    ] = None,
) -> Response:
    """Ask one of the job's networks about up to 64 images (16 MiB in all), on the CPU of a worker. Nothing is kept.

    By the job's `task`: classes, labels or attributes with probabilities; numbers in the targets' units; a class for every
    pixel; boxes, and the masks of a Mask R-CNN. Images are prepared as the job's held-out images were.

    The first request about a network loads it, the next ones are fast. 429 with `Retry-After` while the workers are busy.
    """
    asked = await run_sync(_network, store, tenant, job_id, network)
    wanted = _wanted(asked, top, score)
    images = await _images(request)
    broker_url = request.app.state.settings.broker_url

    def answered() -> str:
        answer = _answer(broker_url, store, tenant, asked, images, wanted)
        return predictions_of(job_id, network, asked, answer, top or TOP).model_dump_json()

    return Response(await run_sync(answered), media_type="application/json")


def _wanted(asked: PredictedNetwork, top: int | None, score: float | None) -> Wanted:
    """Return the boxes that are wanted. Raises ValidationFailed (422) for what the task does not have."""
    if asked.task != "detection" and score is not None:
        _refuse("score", score, f"a least score is of boxes, and the job is of task {asked.task}")
    if asked.task in ("regression", "segmentation") and top is not None:
        _refuse("top", top, f"it is of classes, categories or boxes, and the job is of task {asked.task}")
    return Wanted(most=top or MOST_BOXES, score=score or 0.0)


def _refuse(parameter: str, value: float, why: str) -> NoReturn:
    detail = f"{why}: leave it out"
    raise ValidationFailed(
        f"{parameter}={value:g}: {detail}", [{"pointer": "", "parameter": parameter, "detail": detail}]
    )


async def _images(request: Request) -> list[bytes]:
    """Return the files. Raises TooLarge (413), BadRequest (400) or ValidationFailed (422), naming an image by its index."""
    what = f"a request with images (each of at most {MOST_BYTES} bytes with the others, as files)"
    if await is_json(request):
        body = await (await with_small_body(request, BODY_BYTES)).body()
        try:
            images = PredictRequest.model_validate_json(body).images
        except ValidationError as error:
            raise not_valid(error, body) from None
    elif request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        async with limited(request, BODY_BYTES, what).form(max_files=MOST_IMAGES, max_fields=8) as form:
            files = [one for name, one in form.multi_items() if name == "file" and isinstance(one, UploadFile)]
            images = [await one.read() for one in files]
        if not images:
            raise ValidationFailed(
                "there is no image: send each as a field `file` of multipart/form-data",
                [{"pointer": "/file", "detail": "no file"}],
            )
    else:
        raise ValidationFailed(
            "send the images as fields `file` of multipart/form-data, or as application/json with `images` in base64"
        )
    if (size := sum(map(len, images))) > MOST_BYTES:
        raise TooLarge(f"the images have {size} bytes together, and a request takes {MOST_BYTES}")
    return images


def _answer(
    broker_url: str, store: Store, tenant: Tenant, network: PredictedNetwork, images: list[bytes], wanted: Wanted
) -> Given:
    """Have a worker answer. Raises Busy (429), Unavailable (503), PredictionFailed (409) and ValidationFailed (422)."""
    from redis import RedisError  # as the box has it

    soon = {"Retry-After": "2"}
    box = PredictionBox(broker_url)
    try:
        with box.asking(tenant.name, network, images, wanted) as name:
            if not store.notifier.notify(PREDICT, name):
                raise Unavailable("the broker does not answer: try again", headers={"Retry-After": "5"})
            answer = box.answer_of(name, PATIENCE, LIMIT)
    except TooManyAtOnce:
        raise Busy(
            "other requests of yours are being answered: send this one when they are done", headers=soon
        ) from None
    except NotTaken:
        if not any(worker.queue == "ingest" for worker in store.workers.live()):
            raise Unavailable(
                "no worker that answers predictions is alive: try again", headers={"Retry-After": "5"}
            ) from None
        raise Busy(f"every worker was busy for {PATIENCE:g} s: try again", headers=soon) from None
    except WorkerGone:
        raise Unavailable(
            "the worker that was answering has ended: nothing was changed, send the request again",
            headers={"Retry-After": "1"},
        ) from None
    except TimeoutError:
        raise PredictionFailed(f"there was no answer within {LIMIT:g} s: send fewer images at a time") from None
    except RedisError:
        raise Unavailable("the broker does not answer: try again", headers={"Retry-After": "5"}) from None
    except ValidationError:
        raise PredictionFailed("the worker that answered is of another version: upgrade it") from None
    finally:
        box.close()
    if isinstance(answer, NotAnswered):
        if answer.index is None:
            raise PredictionFailed(answer.message)
        raise ValidationFailed(answer.message, [{"pointer": f"/images/{answer.index}", "detail": answer.message}])
    return answer


# The network.


def _network(store: Store, tenant: Tenant, job_id: str, name: str) -> PredictedNetwork:
    """Return the network that is asked. Raises NotFound, JobNotFinished, NoWeights, FilesExpired, TaskUnsupported."""
    job = store.jobs.get(tenant, job_id)
    if job.weights is None or job.result is None:
        no_result(job, "predictions")
    refuse_expired(job, "predictions")
    spec, result = job.spec, job.result
    summary = store.datasets.summary_for(tenant, job_id)
    task = task_of(result.metrics.averaged)
    recipe = spec.recipe if result.normalization is None else spec.recipe.model_copy(
        update={"normalize": result.normalization.normalization}
    )  # fmt: skip
    normalize = recipe.normalize
    assert isinstance(normalize, Normalization)
    assert isinstance(recipe.image_size, tuple)
    assert recipe.augment != "auto"
    count = told_apart(spec.network, task)
    labels = output_names((spec.classes or (summary.classes if summary else None) or [])[:count], count)
    weights = _weights(store, tenant, job, name)
    uploaded = name == "start" and weights.blob == spec.start.blob
    return PredictedNetwork(
        weights=weights,
        task=task,
        labels=tuple(labels),
        image_size=recipe.image_size,
        mean=tuple(normalize.mean),
        std=tuple(normalize.std),
        augment=recipe.augment,
        crop_ratio=recipe.crop_ratio,
        interpolation=recipe.interpolation,
        recipe=recipe if uploaded else None,
        seed=spec.seed if uploaded or name == "swag" else 0,
        draws=_draws(spec, result) if name == "swag" else 0,
        units=units_of(store.blobs, job.weights) if task == "regression" else None,
    )


def _draws(spec: JobSpec, result: JobResult) -> int:
    """Return how many of the networks that the job drew are asked: the first ones, as many as there is time for."""
    return max(1, min(spec.swag, MOST_DRAWS, MOST_DRAWN_BYTES // max(1, result.weights.bytes)))


def _weights(store: Store, tenant: Tenant, job: JobRecord, name: str) -> StoredWeights:
    """Return the weights of a job's network by its name."""
    spec = job.spec
    delivers_start = job.result is not None and job.result.delivered == "start"

    def stored(blob: str) -> StoredWeights:
        return StoredWeights(id=job.id, sha256=blob, blob=blob, prefix=spec.start.prefix, network=spec.network)

    if name == "start":
        if delivers_start and job.weights is not None:
            return stored(job.weights)
        if spec.recipe.head_epochs:
            raise NoWeights(
                f"{job.id}: its start had a classifier trained by itself first, which is not kept: ask another network"
            )
        try:
            checkpoint = store.checkpoints.get(tenant, spec.start.id)
        except NotFound:
            raise NoWeights(f"{job.id}: its start {spec.start.id} was deleted; there are the other networks") from None
        if checkpoint.weights is None:
            raise CheckpointNotReady(f"{spec.start.id} is {checkpoint.status}")
        return stored(checkpoint.weights).model_copy(update={"network": spec.network})
    if name == "swag":
        return stored(swag_file(store, job, "safetensors"))
    if name == "control":
        return stored(control_file(store, job, "safetensors"))
    if name == "averaged":
        blob = job.averaged if delivers_start else job.weights
        if blob is None:
            raise NoWeights(f"the average of {job.id} was not kept: its guard chose the start")
        return stored(blob)
    return stored(store.snapshots.get(tenant, job.id, int(name.removeprefix("snapshot_"))).sha256)
