"""A real Chromium for the tests: the one of the system, headless, in which an error or a blocked script is a failure."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, sync_playwright

from tests.conftest import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, as the Debian package chromium")
SECONDS = 1000  # of Playwright's milliseconds


class Watched:
    """A context whose pages are listened to: what went wrong in them, and which requests failed."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.faults: list[str] = []
        self.allowed: tuple[str, ...] = ()
        context.on("console", self._said)
        context.on("weberror", lambda error: self.faults.append(str(error.error)))
        context.on("response", self._answered)
        context.set_default_timeout(20 * SECONDS)

    def _said(self, message: ConsoleMessage) -> None:
        # A blocked script or style is told as an error of the console; so is an answer that is none.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.faults.append(message.text)

    def _answered(self, response: Response) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status} {response.url}")

    def check(self) -> None:
        """Raise if anything went wrong that was not allowed."""
        left = [fault for fault in self.faults if not any(part in fault for part in self.allowed)]
        assert left == [], left


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, for as long as the block runs."""
    with sync_playwright() as playwright:
        # The sandbox needs rights that root in a container does not have; the pages are our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def signed_in(
    browser: Browser, service: Service, key: str | None = None, **options: object
) -> Iterator[tuple[Page, Watched]]:
    """A page of a new session, which has nothing to complain about when the block ends. key: whose; None: the tests'."""
    context = browser.new_context(base_url=service.url, locale="en-GB", **options)  # type: ignore[arg-type]
    watched = Watched(context)
    page = context.new_page()
    with service.client(key) as client:
        link = client.request("POST", "/v1/sign-in-links").json()["url"]
    page.goto(link)
    page.get_by_role("button", name="Open the dashboard").click()
    page.wait_for_url(f"{service.url}/")
    try:
        yield page, watched
        watched.check()
    finally:
        context.close()
