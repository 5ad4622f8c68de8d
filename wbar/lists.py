"""A page of objects, newest or oldest first, with the ids that continue it."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list, by keyset pagination: pass `last_id` as `after` to get the next page."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Return the name of a page in the schema, for example `JobPage`."""
        return f"{params[0].__name__}Page"
