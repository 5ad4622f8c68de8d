"""The route of /v1/sign-in-links: from an API key to an open page of the dashboard, without the key in an address."""

from fastapi import APIRouter, Request, Response

from wbar.keys import SignInLink
from wbar_service.answers import answer
from wbar_service.auth import KEY, ReadingRoute, StoreOf
from wbar_service.problems import responses
from wbar_store.sessions import LIFETIMES

router = APIRouter(
    prefix="/v1/sign-in-links", tags=["keys"], route_class=ReadingRoute, responses=responses(401, 403, 429, 503)
)


@router.post("", status_code=201, response_model=SignInLink)
def create_sign_in_link(request: Request, store: StoreOf) -> Response:
    """Make a link that opens the dashboard once, with what this API key may do, until the key is revoked."""
    link = store.sessions.begin(request.scope[KEY], "link")
    return answer(SignInLink(url=f"/sign-in?link={link.token}", expires_in=round(LIFETIMES["link"])), 201)
