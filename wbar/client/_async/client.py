"""The connection: every request goes through `AsyncClient.request` or `AsyncClient.stream`, which retry and raise.

Here a new resource is added: a module with a subclass of AsyncResource, and a line in `__init__`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
from anyio import sleep

from wbar import __version__, config
from wbar.client._async.checkpoints import AsyncCheckpoints
from wbar.client._async.datasets import AsyncDatasets
from wbar.client._async.jobs import AsyncJobs
from wbar.client._async.keys import AsyncKeys
from wbar.client._async.merges import AsyncMerges
from wbar.client._async.studies import AsyncStudies
from wbar.client._async.webhooks import AsyncWebhooks
from wbar.client._async.workers import AsyncWorkers
from wbar.client.addresses import checked_key, checked_url
from wbar.client.problems import refusal, unreachable
from wbar.client.retries import BROKEN, Retries, passes, repeatable, retry_after
from wbar.errors import NotFound, Refused
from wbar.resumable_upload import Answer, NoAnswer, Request


class AsyncClient:
    """A connection to one service. Use it as a context manager (`async with`), or call `close`.

    url: default: WBAR_URL, then the configuration file.
    api_key: default: WBAR_API_KEY, then the configuration file.
    timeout: seconds to wait for one answer.
    retries: how often a request that may be repeated (GET, HEAD, DELETE, and every POST with an `Idempotency-Key`, which
        the client sends with everything that it creates but API keys) is sent again after a lost connection or a 429, 502,
        503 or 504. The pauses grow, with jitter; `Retry-After` is respected up to a minute.

    Raises ValueError for what is no address or no key.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, timeout: float = 60.0, retries: int = 3
    ) -> None:
        configured = config.current()
        self.url = checked_url((url or configured.url or config.DEFAULT_URL).rstrip("/"))
        self.retries = Retries(retries)
        key = checked_key(api_key or configured.api_key or "")
        headers = {"User-Agent": f"wbar/{__version__}"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # trust_env off: a proxy from the environment must not see keys and weights bound for a private address.
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)
        self.checkpoints = AsyncCheckpoints(self)
        self.datasets = AsyncDatasets(self)
        self.jobs = AsyncJobs(self)
        self.keys = AsyncKeys(self)
        self.merges = AsyncMerges(self)
        self.studies = AsyncStudies(self)
        self.webhooks = AsyncWebhooks(self)
        self.workers = AsyncWorkers(self)

    async def request(
        self,
        method: str,
        path: str,
        *,
        content: Callable[[], AsyncIterator[bytes]] | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Send one request and return the response.

        content: makes the body, anew for each try.
        options: as of httpx: params, json.

        Raises Unreachable, or the class of wbar.errors that the problem's code names.
        """
        return await self._send(method, path, False, content, headers=headers, **options)

    async def exchange(self, request: Request) -> Answer | NoAnswer:
        """Send a request once and return how it was answered, whatever the status: what follows is the sender's matter."""
        timeout = self._http.timeout if request.timeout is None else httpx.Timeout(request.timeout)
        try:
            response = await self._http.request(
                request.method,
                request.path,
                headers=request.headers,
                params=request.params,
                content=request.content,
                timeout=timeout,
            )
        except httpx.TransportError as error:
            return NoAnswer(str(error) or type(error).__name__)
        return Answer(response.status_code, response.headers, response.content)

    @asynccontextmanager
    async def stream(self, path: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """Send a GET and yield the response, whose body is read as it comes.

        Raises as `request`, also while the body is read.
        """
        response = await self._send("GET", path, True, headers=headers)
        try:
            if response.next_request is None:
                yield response
                return
            await response.aclose()
            async with self._elsewhere(response, headers) as moved:
                yield moved
        except httpx.TransportError as error:
            raise unreachable(self.url, error) from error
        finally:
            await response.aclose()

    async def _send(
        self,
        method: str,
        path: str,
        stream: bool,
        content: Callable[[], AsyncIterator[bytes]] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Send a request until it is answered, or refused for good, or there were too many tries."""
        tries, lost = 0, False
        while True:
            tries += 1
            body = None if content is None else content()
            request = self._http.build_request(method, path, content=body, **options)
            again = repeatable(method, request.headers)
            try:
                response = await self._http.send(request, stream=stream)
                if response.status_code >= 400 and stream:
                    await response.aread()
            except httpx.TransportError as error:
                pause = self.retries.pause(tries) if again and isinstance(error, BROKEN) else None
                if pause is None:
                    raise unreachable(self.url, error) from error
                lost = True
            else:
                problem = _problem(response)
                # The answer to the DELETE that did it was lost: what is asked for has come about.
                if problem is None or (method == "DELETE" and lost and isinstance(problem, NotFound)):
                    return response
                again = again and passes(response, problem)
                pause = self.retries.pause(tries, retry_after(response)) if again else None
                if pause is None:
                    raise problem
            await sleep(pause)

    @asynccontextmanager
    async def _elsewhere(self, redirect: httpx.Response, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """Yield the answer of the bucket that the service sends a download on to; its history holds the redirect.

        The bucket gets no key, and no `If-Range`, since its tags are others: a range is asked for where the service's tag says
        that the content is still the same.
        """
        assert redirect.next_request is not None
        same = "Range" in headers and headers.get("If-Range", redirect.headers["etag"]) == redirect.headers["etag"]
        wanted = {"Range": headers["Range"]} if same else {}
        url = redirect.next_request.url
        async with (
            httpx.AsyncClient(timeout=self._http.timeout, trust_env=False) as stranger,
            stranger.stream("GET", url, headers=wanted) as response,
        ):
            if response.status_code >= 400:
                raise Refused(
                    f"HTTP {response.status_code} from {url.host}, where the service sent this download on to"
                )
            response.history = [redirect]
            yield response

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _problem(response: httpx.Response) -> Refused | None:
    return None if response.status_code < 400 else refusal(response)
