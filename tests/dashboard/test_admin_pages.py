"""The pages of webhooks and keys without a browser: made, shown once, sent again, ended, and by whom."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.test_pages import MINE, OTHER, sign_in, store_of
from tests.service.app import App, app_in
from wbar_service.dashboard import operations

URL = "https://hooks.example/wbar"
ROUTES = ("ping", "rotate", "enable", "delete")


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        yield made


def test_a_webhook_from_its_creation_to_its_end(app: App) -> None:
    store, browser = store_of(app), sign_in(app)
    made = browser.post("/webhooks", url=URL, name="my chat", event=["job.succeeded", "checkpoint.*"])
    hook = store.webhooks.page(MINE, operations.PageRequest(1)).records[0]
    assert (hook.url, hook.name, hook.events) == (URL, "my chat", ("job.succeeded", "checkpoint.*"))
    assert hook.secret in made.text
    page = f"/webhooks/{hook.id}"
    assert page in browser.get("/webhooks").text
    assert browser.post(f"{page}/ping").headers["location"] == page
    shown = browser.get(page).text
    assert "whsec_" not in shown + browser.get("/webhooks").text
    assert re.search(r"webhook\.ping.*pending", shown, re.DOTALL)
    assert "webhook.ping" in browser.get(f"{page}?status=pending", headers={"HX-Request": "true"}).text
    assert "No delivery of this kind" in browser.get(f"{page}?status=failed").text

    again = re.findall(r'action="(/webhooks/\w+/deliveries/\w+/replay)"', shown)
    assert browser.post(again[0]).headers["location"] == page
    rotated = browser.post(f"{page}/rotate").text
    newest = store.webhooks.get(MINE, hook.id)
    assert newest.secret != hook.secret
    assert newest.secret in rotated
    assert [former.secret for former in newest.former_secrets] == [hook.secret]

    store.webhooks.disable(hook.id, "its receiver answered 410 (gone)")
    for path in (f"{page}/ping", again[0]):
        refused = browser.post(path)
        assert (refused.status_code, "is disabled" in refused.text) == (409, True)
    assert browser.post(f"{page}/enable").status_code == 303
    assert store.webhooks.get(MINE, hook.id).status == "enabled"
    assert browser.post(f"{page}/delete").headers["location"] == "/webhooks"
    assert browser.post(f"{page}/delete").status_code == 303, "a second click is no fault"
    assert browser.get(page).status_code == 404


def test_a_webhook_that_does_not_fit_says_why_and_keeps_what_was_typed(app: App) -> None:
    browser = sign_in(app)
    for form, said in (
        ({"url": "nowhere", "event": "*"}, "url: "),
        ({"url": URL}, "events: "),
        ({"url": "https://127.0.0.1/x", "event": "*"}, "/url: "),
        ({"url": "http://hooks.example", "event": "job.*", "name": "my chat"}, "use https"),
    ):
        refused = browser.post("/webhooks", **form)
        assert refused.status_code == 422
        assert said in refused.text
        assert f'value="{form["url"]}"' in refused.text
    assert store_of(app).webhooks.page(MINE, operations.PageRequest(1)).records == []


def test_whoever_reads_may_look_at_webhooks_and_change_nothing(app: App) -> None:
    store = store_of(app)
    hook = store.webhooks.create(MINE, URL, ("*",), None)
    delivery = store.deliveries.ping(MINE, hook.id).id
    reader, stranger, admin = sign_in(app, scopes=("read", "write")), sign_in(app, OTHER), sign_in(app)
    assert "webhook.ping" in reader.get(f"/webhooks/{hook.id}").text
    for page in ("/webhooks", f"/webhooks/{hook.id}"):
        assert 'action="/webhooks' not in reader.get(page).text.replace('method="get" action="/webhooks', "")
    changes = [f"/webhooks/{hook.id}/{route}" for route in (*ROUTES, f"deliveries/{delivery}/replay")]
    for path in ("/webhooks", *changes):
        assert reader.post(path, url=URL, event="*").status_code == 403
        assert admin.post(path, csrf="", url=URL, event="*").status_code == 403
    assert URL not in stranger.get("/webhooks").text
    assert stranger.get(f"/webhooks/{hook.id}").status_code == 404
    for path in changes:
        assert stranger.post(path).status_code in (303, 404)  # to delete what is not there is no fault
    assert store.webhooks.get(MINE, hook.id).secret == hook.secret


@pytest.mark.parametrize("kind", ["webhooks", "keys"])
def test_lists_have_pages(app: App, kind: str) -> None:
    store, browser = store_of(app), sign_in(app)
    for n in range(operations.ROWS + 3):
        if kind == "keys":
            store.keys.create(f"number {n};")
        else:
            store.webhooks.create(MINE, f"{URL}/{n};", ("*",), None)
    one = r"number (\d+);<?" if kind == "keys" else r"wbar/(\d+);"
    path, seen = f"/{kind}", list[int]()
    while path:
        page = browser.get(path).text
        body = page.partition("<tbody>")[2]
        seen += dict.fromkeys(int(n) for n in re.findall(one, re.sub(r"<form.*?</form>", "", body, flags=re.DOTALL)))
        assert ("First page" in page) == (path != f"/{kind}")
        following = re.search(r'href="([^"]+)" rel="next"', page)
        path = following[1].replace("&amp;", "&") if following else ""
    assert seen == list(range(operations.ROWS + 2, -1, -1))
