# Derived from wbar/client/_async/keys.py by `make client` (tools/derive_client.py): edit that one.
"""`client.keys`."""

from collections.abc import Iterator, Sequence

from wbar.client._sync.resource import Resource
from wbar.client.addresses import segment
from wbar.keys import ApiKey, Scope, SignInLink
from wbar.lists import Page


class Keys(Resource):
    """Creates, lists and revokes API keys of the same tenant. Raises Forbidden for a key without the scope `admin`."""

    def create(
        self, name: str, *, scopes: Sequence[Scope] = ("read", "write"), expires_in_days: float | None = None
    ) -> ApiKey:
        """Create a key. Its `key` is in this answer only: that is why this is never sent again by itself."""
        body = {"name": name, "scopes": [*scopes], "expires_in_days": expires_in_days}
        answer = self._client.request("POST", "/v1/keys", json=body)
        return ApiKey.model_validate(answer.json())

    def list(self, limit: int = 20, after: str | None = None, order: str | None = None) -> Page[ApiKey]:
        """Return one page of keys, newest first unless `order` is `asc`."""
        return self._get("/v1/keys", Page[ApiKey], limit=limit, after=after, order=order)

    def iterate(self, order: str | None = None) -> Iterator[ApiKey]:
        """Return an iterator over all keys, loaded page by page, newest first unless `order` is `asc`."""
        return self._pages("/v1/keys", Page[ApiKey], order=order)

    def revoke(self, key_id: str) -> None:
        """Revoke a key: it is refused a second later at most. Raises NotFound."""
        self._client.request("DELETE", f"/v1/keys/{segment(key_id)}")

    def sign_in_link(self) -> SignInLink:
        """Make a link that opens the dashboard once, with what this client's key may do."""
        answer = self._client.request("POST", "/v1/sign-in-links")
        return SignInLink.model_validate(answer.json())
