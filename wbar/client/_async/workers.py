"""`client.workers`."""

from wbar.client._async.resource import AsyncResource
from wbar.lists import Page
from wbar.workers import Worker


class AsyncWorkers(AsyncResource):
    """Lists the workers that live."""

    async def list(self) -> Page[Worker]:
        """Return the workers that live, all of them on one page, each with the jobs of yours that it runs."""
        return await self._get("/v1/workers", Page[Worker])
