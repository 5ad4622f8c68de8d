"""The base of all parts of a request: unknown fields are refused, and null stands for the default."""

from functools import cache
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

SEEDS = 2**31  # how many there are
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
MOST_UNKNOWN = 20  # that are named one by one


class RequestModel(BaseModel):
    """A part of a request.

    Clients that are generated from the schema send null for what their user left out: null for a field that has a default
    is that default. Null for a required field stays an error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > len(cls.model_fields) + MOST_UNKNOWN:
            # An error for each would take many times the memory of the request.
            raise ValueError(
                f"an object of {len(data)} fields, of which at most {len(cls.model_fields)} are known here"
            )
        optional, booleans = _optional(cls), _booleans(cls)
        return {
            name: value if name in booleans else _without_booleans(value)
            for name, value in data.items()
            if value is not None or name not in optional
        }


class _Boolean:
    """Stands for true or false where a number is wanted: Python takes them for 1 and 0, JSON does not."""

    def __repr__(self) -> str:
        return "a boolean"


def _without_booleans(value: Any) -> Any:
    if isinstance(value, bool):
        return _Boolean()
    if isinstance(value, list) and any(isinstance(one, bool) for one in value):
        return [_Boolean() if isinstance(one, bool) else one for one in value]
    return value


@cache
def _booleans(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, field in model.model_fields.items() if _takes_a_boolean(field.annotation))


def _takes_a_boolean(annotation: Any) -> bool:
    if annotation in (bool, Any) or any(one in (True, False) for one in get_args(annotation) if isinstance(one, bool)):
        return True
    return any(_takes_a_boolean(one) for one in get_args(annotation))


@cache
def _optional(model: type[BaseModel]) -> frozenset[str]:
    # Once for each model: stored specs are parsed with every answer about a job.
    return frozenset(name for name, field in model.model_fields.items() if not field.is_required())


ExpiresAfter = Annotated[int, Field(ge=60, le=10 * 365 * 86_400)]  # seconds: a minute to ten years
