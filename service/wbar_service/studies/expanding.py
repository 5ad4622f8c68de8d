"""From a study's request to the requests of its jobs: the product of all that it varies, each job once."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import JsonValue, ValidationError

from wbar.errors import Refused, ValidationFailed
from wbar.job_request import JobRequest
from wbar.studies import Scaling, StudyRequest, StudySettings, scaled_rate
from wbar_service.jobs.cloning import DEFAULT, merged, without_another_method
from wbar_service.problems import refusal_of

LONGEST_NAME = 256
Asked = Mapping[str, Any]


def requests_of(study: StudyRequest) -> list[tuple[StudySettings, JobRequest]]:
    """Return the requests of the study's jobs with what distinguishes them, in the order of its axes.

    Raises ValidationFailed, which names the job by its settings, where one of them makes no sense.
    """
    made: dict[str, tuple[StudySettings, JobRequest]] = {}
    for settings, asked in _varied(study):
        body = _validated(settings, asked)
        same = body.model_dump_json(exclude={"name"})
        if same in made:
            both = made[same][0]
            settings = both.model_copy(update={"scaling": tuple(dict.fromkeys((*both.scaling, *settings.scaling)))})
        name = f"{study.name or study.job.name or 'study'}: {settings.in_words()}"[:LONGEST_NAME]
        made[same] = settings, body.model_copy(update={"name": name})
    return list(made.values())


def _varied(study: StudyRequest) -> Iterator[tuple[StudySettings, Asked]]:
    """Yield every combination, with the job's request as JSON."""
    base = study.job.as_sent()
    rates: list[tuple[float | None, Scaling | None]] = [(None, None)]
    if study.rates:
        rates = [(rate, scaling) for rate in study.rates for scaling in study.scaling]
    changes: list[tuple[int | None, Asked]] = [(None, {})]
    if study.changes:
        changes = [*enumerate(study.changes, start=1)]
    batches: list[int | None] = [*study.batch_sizes] if study.batch_sizes else [None]
    seeds: list[int | None] = [*study.seeds] if study.seeds else [None]
    paths = list(study.vary)
    for (change, patch), values, batch, (rate, scaling), seed in product(
        changes, product(*study.vary.values()), batches, rates, seeds
    ):
        fields: dict[str, JsonValue] = dict(zip(paths, values, strict=True))
        asked = merged(without_another_method(base, patch), patch)
        for path, value in fields.items():
            asked = _with_field(asked, path, value)
        if batch is not None:
            asked = _with_field(asked, "recipe.batch_size", batch)
        lr = None
        if rate is not None and scaling is not None:
            lr = _rate(rate, scaling, asked, study.base_batch)
            asked = _with_field(asked, f"method.{_rate_field(asked)}", lr)
        if seed is not None:
            asked = _with_field(asked, "seed", seed)
        yield (
            StudySettings(
                batch_size=batch, lr=lr, scaling=(scaling,) if scaling else (), fields=fields, change=change, seed=seed
            ),
            asked,
        )


def _with_field(asked: Asked, path: str, value: JsonValue) -> Asked:
    patch: JsonValue = value
    for name in reversed(path.split(".")):
        patch = {name: patch}
    assert isinstance(patch, dict)
    found: Asked = merged(without_another_method(asked, patch), patch)
    return found


def _rate(rate: float, scaling: Scaling, asked: Asked, base_batch: int) -> float:
    if scaling == "none":
        return rate
    batch = (asked.get("recipe") or {}).get("batch_size")
    if not isinstance(batch, int):
        raise ValidationFailed(f"scaling {scaling} needs the batch, and a job has recipe.batch_size {batch!r}")
    return scaled_rate(rate, scaling, batch, base_batch)


def _rate_field(asked: Asked) -> str:
    """Return which field of the method is its highest rate. Raises ValidationFailed for a soup, which has none."""
    kind = (asked.get("method") or {}).get("type", DEFAULT)
    if kind == "soup":
        raise ValidationFailed("rates are given, and a soup trains nothing: leave them out")
    return "high.lr" if kind == DEFAULT else "lr"


def _validated(settings: StudySettings, asked: Asked) -> JobRequest:
    try:
        return JobRequest.model_validate(asked)
    except ValidationError as error:
        failures = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        refused = refusal_of(RequestValidationError(failures, body=asked))
        raise of_child(settings, refused) from None


def of_child(settings: StudySettings, refused: Refused) -> Refused:
    """Return the refusal of one of the study's jobs, which says of which; pointers are into its request."""
    return type(refused)(f"the job with {settings.in_words()}: {refused.detail}", refused.errors, **refused.extra)
