"""Answers from rows: they were validated when they were written, and are not validated again on their way out.

That the rows fit the schema is a matter for the tests, which ask every route of a real service.
"""

from typing import Any

from fastapi import Response
from pydantic_core import to_json


def answer(body: Any, status: int = 200) -> Response:
    """A JSON answer. A number that is not finite becomes null: JSON has no other word for it."""
    return Response(to_json(body, inf_nan_mode="null"), status, media_type="application/json")
