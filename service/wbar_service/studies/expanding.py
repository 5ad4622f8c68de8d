"""From a study's request to the requests of its jobs: the product of all that it varies, each job once."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import JsonValue, ValidationError

from wbar.errors import Refused, ValidationFailed
from wbar.job_request import JobRequest
from wbar.merge_patch import method_type, patched
from wbar.studies import Scaling, StudyRequest, StudySettings, scaled_rate
from wbar.text import LONGEST_NAME
from wbar_service.problems import refusal_of

Asked = Mapping[str, Any]


def requests_of(study: StudyRequest) -> list[tuple[StudySettings, JobRequest]]:
    """Return the requests of the study's jobs with what distinguishes them, in the order of its axes.

    Jobs that differ in the scaling of their rate alone, and have the same rate, are one.

    Raises ValidationFailed, which names the job by its settings, where one of them makes no sense.
    """
    made: dict[str, tuple[StudySettings, JobRequest]] = {}
    for settings, asked in _varied(study):
        body = _validated(settings, asked)
        same = body.model_dump_json(exclude={"name"})
        if same in made:
            settings = _as_one(made[same][0], settings)
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
        asked: Asked = base
        if "method.type" in fields:  # first: another type leaves its fields out
            asked = _with_field(asked, "method.type", fields["method.type"])
        asked = patched(asked, patch)
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
        settings = StudySettings(
            batch_size=batch, lr=lr, scaling=(scaling,) if scaling else (), fields=fields, change=change, seed=seed
        )
        for path, value in (*_leaves(patch), *_leaves(fields)):
            if value is not None and _at(asked, path) != value:  # what null removes, another axis may set
                raise ValidationFailed(
                    f"the job with {settings.in_words()}: two of batch_sizes, rates, vary, changes and seeds set {path}, to "
                    f"{value!r} and {_at(asked, path)!r}: leave it to one of them"
                )
        yield settings, asked


def _as_one(first: StudySettings, second: StudySettings) -> StudySettings:
    """Return the settings of two jobs that came out the same, as scalings may. Raises ValidationFailed for all else."""
    both = first.model_copy(update={"scaling": tuple(dict.fromkeys((*first.scaling, *second.scaling)))})
    if both != second.model_copy(update={"scaling": both.scaling}):
        raise ValidationFailed(
            f"the jobs with {first.in_words()} and with {second.in_words()} are the same: name what differs, or one of them"
        )
    return both


def _leaves(patch: Asked, before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the paths of a patch, and the values that it sets there, null where it removes."""
    for name, value in patch.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{name}.")
        elif value != {}:
            yield before + name, value


def _at(asked: Asked, path: str) -> Any:
    """Return what a request has at a path; None for nothing."""
    found: Any = asked
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _with_field(asked: Asked, path: str, value: JsonValue) -> Asked:
    patch: JsonValue = value
    for name in reversed(path.split(".")):
        patch = {name: patch}
    assert isinstance(patch, dict)
    return patched(asked, patch)


def _rate(rate: float, scaling: Scaling, asked: Asked, base_batch: int) -> float:
    if scaling == "none":
        return rate
    batch = (asked.get("recipe") or {}).get("batch_size")
    if not isinstance(batch, int):
        raise ValidationFailed(f"scaling {scaling} needs the batch, and a job has recipe.batch_size {batch!r}")
    return scaled_rate(rate, scaling, batch, base_batch)


def _rate_field(asked: Asked) -> str:
    """Return which field of the method is its highest rate. Raises ValidationFailed for a soup, which has none."""
    kind = method_type(asked.get("method"))
    if kind == "soup":
        raise ValidationFailed("rates are given, and a soup trains nothing: leave them out")
    return "high.lr" if kind == "cyclic_swa" else "lr"


def _validated(settings: StudySettings, asked: Asked) -> JobRequest:
    try:
        return JobRequest.model_validate(asked)
    except ValidationError as error:
        failures = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        refused = refusal_of(RequestValidationError(failures, body=asked))
        raise of_child(settings, refused) from None


def of_child(settings: StudySettings, refused: Refused) -> Refused:
    """Return the refusal of one of the study's jobs, which says of which; pointers are into its request."""
    return type(refused)(
        f"the job with {settings.in_words()}: {refused.detail}", refused.errors, refused.headers, **refused.extra
    )
