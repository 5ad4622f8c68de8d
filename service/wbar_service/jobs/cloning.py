"""The request of a job like another one: what was asked for then, with a JSON merge patch (RFC 7396) applied."""

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import Example
from pydantic import ValidationError

from wbar.job_request import JobRequest
from wbar.merge_patch import patched
from wbar_store.job_records import JobRecord

CHANGES: dict[str, Example] = {
    "another seed": {"value": {"seed": 1, "name": "once more"}},
    "more cycles": {"value": {"method": {"cycles": 12}}},
    "no numbers": {"value": {"method": {"type": "auto", "epochs": 12}}},
}


def changed(job: JobRecord, patch: Mapping[str, Any]) -> JobRequest:
    """Return the request of `job` with the patch. Raises RequestValidationError, whose pointers are into the whole request.

    A job of a version before, which kept no request, gives its resolved method and recipe.
    """
    asked = job.request if job.request is not None else _resolved(job)
    whole = patched(asked, patch)
    try:
        return JobRequest.model_validate(whole)
    except ValidationError as error:
        failures = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(failures, body=whole) from None


def _resolved(job: JobRecord) -> dict[str, Any]:
    shown = job.to_api().model_dump(mode="json", include=set(JobRequest.model_fields))
    return {name: value for name, value in shown.items() if value is not None}
