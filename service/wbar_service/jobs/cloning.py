"""The request of a job like another one: what was asked for then, with a JSON merge patch (RFC 7396) applied."""

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.openapi.models import Example
from pydantic import ValidationError

from wbar.job_request import JobRequest
from wbar.method import CyclicSwa
from wbar_store.job_records import JobRecord

DEFAULT = CyclicSwa().type
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
    whole = merged(without_another_method(asked, patch), patch)
    try:
        return JobRequest.model_validate(whole)
    except ValidationError as error:
        failures = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(failures, body=whole) from None


def merged(target: Any, patch: Any) -> Any:
    """Return the target with a merge patch applied: objects are merged, null removes, everything else replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def without_another_method(asked: Mapping[str, Any], patch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave the method out where the patch names another type: one type's fields are not another's."""
    change = patch.get("method")
    kind = (asked.get("method") or {}).get("type", DEFAULT)
    if isinstance(change, Mapping) and change.get("type", kind) != kind:
        return {name: value for name, value in asked.items() if name != "method"}
    return asked


def _resolved(job: JobRecord) -> dict[str, Any]:
    shown = job.to_api().model_dump(mode="json", include=set(JobRequest.model_fields))
    return {name: value for name, value in shown.items() if value is not None}
