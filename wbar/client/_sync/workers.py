# Derived from wbar/client/_async/workers.py by `make client` (tools/derive_client.py): edit that one.
"""`client.workers`."""

from wbar.client._sync.resource import Resource
from wbar.lists import Page
from wbar.workers import Worker


class Workers(Resource):
    """Lists the workers that live."""

    def list(self) -> Page[Worker]:
        """Return the workers that live, all of them on one page, each with the jobs of yours that it runs."""
        return self._get("/v1/workers", Page[Worker])
