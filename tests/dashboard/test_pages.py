"""The dashboard's pages without a browser: who may see them, what a change needs, what a form becomes, what a page weighs."""

import gzip
import hashlib
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from sqlalchemy import update

from tests.service.app import App, app_in
from tests.store.rows import insert_inputs, spec
from tools.vendor_scripts import FILES, FOLDER
from wbar.job_request import JobRequest
from wbar.jobs import StepPhase
from wbar.method import TYPES, CyclicSwa
from wbar.results import VERDICTS, Comparisons
from wbar.states import JobStatus
from wbar_service.dashboard import glossary, job_form, job_list
from wbar_service.dashboard.pages import STATIC
from wbar_service.sessions import COOKIE, csrf_of
from wbar_store.database import Tenant
from wbar_store.keys import DEFAULT_TENANT
from wbar_store.store import Store
from wbar_store.tables import checkpoints

MINE, OTHER = DEFAULT_TENANT, Tenant("other")
PAGES = ("/", "/jobs/new", "/checkpoints", "/datasets", "/studies", "/merges", "/workers", "/webhooks", "/keys")


class Browser:
    """An App that is asked as a browser asks: by a session's cookie, following no redirect."""

    def __init__(self, app: App, token: str) -> None:
        self.app, self.token = app, token

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, csrf: str | None = None, **form: Any) -> httpx.Response:
        token = csrf_of(self.token) if csrf is None else csrf
        return self.ask("POST", path, data={"csrf": token, **form})

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Cookie": f"{COOKIE}={self.token}", **options.pop("headers", {})}
        return self.app.request(method, path, key=None, headers=headers, **options)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        insert_inputs(store_of(made).database)
        with store_of(made).database.write() as connection:  # what they are made of is no matter of these tests
            connection.execute(update(checkpoints).values(status="processing"))
        yield made


def store_of(app: App) -> Store:
    store: Store = app.asgi.state.store
    return store


def sign_in(app: App, tenant: Tenant = MINE, scopes: Any = ("read", "write", "admin")) -> Browser:
    store = store_of(app)
    return Browser(app, store.sessions.begin(store.keys.create("reader", tenant, scopes).record).token)


def test_a_stranger_is_asked_to_sign_in_and_comes_back_to_the_page(app: App) -> None:
    for path in PAGES:
        answer = app.request("GET", path, key=None)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in")
    assert (
        app.request("GET", "/jobs/job_1?x=1", key=None).headers["location"] == "/sign-in?next=%2Fjobs%2Fjob_1%3Fx%3D1"
    )
    for after, target in (
        ("/jobs/job_1", "/jobs/job_1"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("http://x", "/"),
    ):
        entered = app.request("POST", "/sign-in", key=None, data={"api_key": app.key, "next": after})
        assert (entered.status_code, entered.headers["location"]) == (303, target)
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert app.key not in cookie
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert app.request("POST", "/sign-in", key=None, data={"api_key": app.key}, headers=elsewhere).status_code == 401
    refused = app.request("POST", "/sign-in", key=None, data={"api_key": "wbar_wrong"})
    assert refused.status_code == 401
    assert "set-cookie" not in refused.headers
    assert "not known here" in refused.text


def test_a_link_signs_in_once_and_not_by_being_looked_at(app: App) -> None:
    url = app.request("POST", "/v1/sign-in-links").json()["url"]
    link = url.partition("link=")[2]
    for _ in range(2):
        seen = app.request("GET", f"{url}&next=/workers", key=None)
        assert (seen.status_code, "Open the dashboard" in seen.text) == (200, True)
        assert "set-cookie" not in seen.headers
    elsewhere = app.request("POST", "/sign-in", key=None, data={"link": link}, headers={"Sec-Fetch-Site": "cross-site"})
    assert elsewhere.status_code == 401
    asked = {"link": link, "next": "/workers"}
    first, second = (app.request("POST", "/sign-in", key=None, data=asked) for _ in range(2))
    assert (first.status_code, first.headers["location"]) == (303, "/workers")
    assert (second.status_code, "was used before" in second.text) == (401, True)
    looked_at = app.request("GET", url, key=None)
    assert (looked_at.status_code, "was used before" in looked_at.text) == (401, True), "said before it is clicked"


def test_a_session_ends_with_its_key_and_by_signing_out(app: App) -> None:
    store, browser = store_of(app), sign_in(app)
    assert browser.get("/").status_code == 200
    assert browser.post("/sign-out").status_code == 303
    assert browser.get("/").status_code == 303
    assert store.sessions.valid(browser.token) is None
    other = store.keys.create("short")
    session = store.sessions.begin(other.record)
    store.keys.revoke(MINE, other.record.id)
    assert store.sessions.valid(session.token) is None


def test_a_change_needs_the_token_of_a_page(app: App) -> None:
    browser, job = sign_in(app), store_of(app).jobs.create(MINE, spec(), None, {}).id
    for csrf in ("", "0" * 64, csrf_of("another session")):
        assert browser.post(f"/jobs/{job}/cancel", csrf=csrf).status_code == 403
        refused = browser.ask("POST", f"/v1/jobs/{job}/cancel", headers={"X-CSRF-Token": csrf} if csrf else {})
        assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")
    assert browser.get(f"/v1/jobs/{job}").json()["status"] == "queued"
    assert browser.post(f"/jobs/{job}/cancel").headers["location"] == f"/jobs/{job}"
    assert browser.get(f"/v1/jobs/{job}").json()["status"] == "cancelled"


def test_scopes_hold_on_pages_too(app: App) -> None:
    job = store_of(app).jobs.create(MINE, spec(), None, {}).id
    reader = sign_in(app, scopes=("read",))
    assert reader.get(f"/jobs/{job}").status_code == 200
    assert "Cancel…" not in reader.get(f"/jobs/{job}").text
    assert reader.post(f"/jobs/{job}/cancel").status_code == 403
    assert reader.get("/keys").status_code == 403
    assert store_of(app).jobs.get(MINE, job).status == "queued"


def test_another_tenants_objects_are_not_there(app: App) -> None:
    job = store_of(app).jobs.create(MINE, spec(), "secret name", {}).id
    stranger = sign_in(app, OTHER)
    for path in (
        f"/jobs/{job}",
        "/checkpoints/ckpt_1",
        "/datasets/ds_1",
        f"/compare?job={job}&job=x",
        f"/jobs/new?clone={job}",
    ):
        answer = stranger.get(path)
        assert answer.status_code == 404, path
        assert "secret name" not in answer.text
    assert stranger.post(f"/jobs/{job}/cancel").status_code == 404
    assert "secret name" not in stranger.get("/").text
    assert store_of(app).jobs.get(MINE, job).status == "queued"


def test_a_name_is_text_wherever_it_is_shown(app: App) -> None:
    evil = "<img src=x onerror=alert(1)>"
    job = store_of(app).jobs.create(MINE, spec(), evil, {"team": evil}).id
    browser = sign_in(app)
    for path in ("/?columns=metadata", f"/jobs/{job}", f"/jobs/confirm?action=cancel&job={job}", "/workers"):
        page = browser.get(path)
        assert "<img" not in page.text, path
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy


def test_every_page_is_whole_without_scripts(app: App) -> None:
    browser = sign_in(app)
    for path in PAGES:
        page = browser.get(path)
        assert page.status_code == 200, page.text
        assert "<main" in page.text
        assert not re.search(r"\son\w+=|<style|style=|javascript:", page.text), "nothing inline"


def test_a_page_weighs_little(app: App) -> None:
    """The bound is on what a browser fetches first: the page, the style, the scripts; before compression."""
    page = sign_in(app).get("/jobs/new")
    names = set(re.findall(r'/static/([^"?]+)', page.text))
    names |= {"charts.js", "uploads.js", "vendor/uPlot.iife.min.js", "vendor/uPlot.min.css"}
    assert len(page.content) + sum(len((STATIC / name).read_bytes()) for name in names) < 200_000
    assert sum(len(gzip.compress((STATIC / name).read_bytes())) for name in names) < 80_000


def test_static_files_are_kept_where_their_address_says_which_they_are(app: App) -> None:
    address = re.findall(r"/static/wbar\.js\?\w+", app.request("GET", "/sign-in", key=None).text)[0]
    assert "immutable" in app.request("GET", address, key=None).headers["cache-control"]
    for path in ("/static/charts.js", "/static/wbar.js", "/static/wbar.js?0"):
        assert app.request("GET", path, key=None).headers["cache-control"] == "no-cache"
    for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/static/vendor/htmx.LICENSE", "/static/"):
        assert app.request("GET", path, key=None).status_code == 404


def test_the_vendored_libraries_are_what_their_digests_say() -> None:
    for _, _, name, sha256 in FILES:
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == sha256
    assert {path.name for path in FOLDER.iterdir()} == {name for _, _, name, _ in FILES}


def test_lists_are_filtered_sorted_and_remember_their_columns(app: App) -> None:
    store, browser = store_of(app), sign_in(app)
    first = store.jobs.create(MINE, spec(), "first job", {"team": "vision"}, priority=3).id
    second = store.jobs.create(MINE, spec(), "second job", {}).id
    store.jobs.cancel(MINE, second)

    def shown(query: str) -> list[str]:
        return re.findall(r'<a href="/jobs/(job_\w+)"', browser.get(f"/{query}").text)

    assert shown("") == [second, first]
    assert shown("?order=asc") == [first, second]
    assert shown("?status=queued&name=&verdict=") == shown("?name=FIRST") == shown("?metadata=team%3Dvision") == [first]
    assert shown("?dataset=ds_1&checkpoint=ckpt_1&status=cancelled") == [second]
    assert shown("?verdict=better") == []
    chosen = browser.get("/?columns=&columns=priority")
    assert re.findall(r"<th scope=\"col\"[^>]*>\s*(Priority|Loss|Created)", chosen.text) == ["Priority"]
    cookie = chosen.headers["set-cookie"].split(";")[0]
    again = browser.ask("GET", "/", headers={"Cookie": f"{COOKIE}={browser.token}; {cookie}"})
    assert "Priority" in again.text
    assert "Loss vs start" not in re.sub(r"(?s)<details.*?</details>", "", again.text)
    assert browser.get("/?metadata=%00").status_code == 422
    assert browser.get("/?after=nothing").status_code == 422


def test_several_jobs_are_cancelled_and_deleted_after_a_question(app: App) -> None:
    store, browser = store_of(app), sign_in(app)
    queued, ended = (store.jobs.create(MINE, spec(), name, {}).id for name in ("waits", "over"))
    store.jobs.cancel(MINE, ended)
    question = browser.get(f"/jobs/confirm?action=cancel&job={queued}&job={ended}").text
    assert "Cancel 1 job?" in question
    assert f"Left alone, since they have ended: {ended}" in question
    assert browser.post("/jobs/act", action="cancel", job=[queued]).headers["location"] == "/"
    assert browser.post("/jobs/act", action="delete", job=[queued, ended, "job_gone"]).status_code == 303
    assert store.jobs.counts(MINE) == {}


def test_an_action_that_comes_too_late_says_so_on_the_job(app: App) -> None:
    store, browser = store_of(app), sign_in(app)
    job = store.jobs.create(MINE, spec(), None, {}).id
    for action in ("pause", "finish", "resume", "delete"):
        late = browser.post(f"/jobs/{job}/{action}")
        assert late.status_code == 409
        assert f"{job} is queued" in late.text
    assert browser.post(f"/jobs/{job}/explode").status_code == 404


def test_compare_shows_what_differs(app: App) -> None:
    store, browser = store_of(app), sign_in(app)
    one, two = (store.jobs.create(MINE, spec(method=CyclicSwa(cycles=n)), f"{n} cycles", {}).id for n in (3, 4))
    page = browser.get(f"/compare?job={one}&job={two}").text
    assert re.findall(r"<code>([\w.]+)</code>", page) == ["method.cycles"]
    for ids in ([one], [one, one], [f"job_{n}" for n in range(13)]):
        assert browser.get("/compare?" + "&".join(f"job={i}" for i in ids)).status_code == 422


@pytest.mark.parametrize("method", TYPES)
def test_the_form_has_every_field_of_the_request(method: str) -> None:
    paths = {field.path for field in job_form.fields(method)}
    top = {path.split(".")[0] for path in paths} | job_form.ELSEWHERE
    assert top >= set(JobRequest.model_fields)
    assert {"recipe.optimizer.momentum", "seed", "flatness"} <= paths


@pytest.mark.parametrize("method", TYPES)
def test_the_form_shows_little_at_once_and_explains_it(method: str) -> None:
    shown = [field for field in job_form.fields(method) if field.open]
    assert len(shown) <= 3
    assert all(field.description for field in shown)
    folded = [field for group in job_form.grouped(method, {"seed": "3", "metadata": "a=b"}) for field in group.fields]
    assert len(folded) + len(shown) == len(job_form.fields(method))
    assert sum(group.given for group in job_form.grouped(method, {"seed": "3", "metadata": "a=b"})) == 2


def test_a_blank_form_says_what_it_recommends_and_that_it_is_not_the_default(app: App) -> None:
    assert JobRequest(checkpoint="ckpt_1", dataset="ds_1").method.type == job_form.DEFAULT_METHOD
    assert set(job_form.METHODS) == set(TYPES)
    page = sign_in(app).get("/jobs/new").text
    for path, value in job_form.RECOMMENDED.items():
        chosen = rf'<select id="{path}"[^>]*>(?:(?!</select>).)*?<option value="{value}" selected'
        assert re.search(chosen, page, re.DOTALL), path
    assert "begins with what is recommended" in page
    assert "API's default, <code>cyclic_swa</code>" in page


def test_every_word_of_a_result_is_explained() -> None:
    assert set(glossary.ROWS) == set(Comparisons.model_fields)
    assert set(glossary.STATES) == set(get_args(JobStatus))
    assert set(glossary.PHASES) == set(get_args(StepPhase))
    assert set(glossary.VERDICT_WORDS) == set(VERDICTS)
    assert set(job_list.EXPLAINED.values()) <= set(glossary.TERMS)


def test_an_upload_is_deleted_after_a_question(app: App) -> None:
    browser = sign_in(app)
    for path in ("/checkpoints/ckpt_1", "/datasets/ds_1"):
        assert f'href="{path}/delete"' in browser.get(path).text
        question = browser.get(f"{path}/delete").text
        assert "Lost for good" in question
        assert "Kept" in question
        assert sign_in(app, OTHER).get(f"{path}/delete").status_code == 404
        assert browser.get(path).status_code == 200, "nothing is deleted by a question"
        assert browser.post(f"{path}/delete").status_code == 303
        assert browser.get(path).status_code == 404


def test_lists_have_names_and_ids(app: App) -> None:
    job = store_of(app).jobs.create(MINE, spec(), "my job", {}).id
    page = sign_in(app).get("/?columns=&columns=checkpoint&columns=dataset").text
    assert f'<code class="id">{job}</code>' in page
    for one in ("ckpt_1", "ds_1"):
        assert re.search(rf'<a href="/\w+/{one}">x</a> <code class="id">{one}</code>', page)


def test_a_form_is_read_as_the_request_that_it_shows() -> None:
    asked = {
        "checkpoint": "ckpt_1", "dataset": "ds_1", "name": "007", "metadata": {"team": "vision", "run": "3"},
        "method": {"type": "cyclic_swa", "cycles": 4, "high": {"lr": "auto", "milestones": [0.25, 0.5]}, "control": True},
        "recipe": {"optimizer": {"name": "sgd", "betas": [0.8, 0.9]}, "normalize": "imagenet", "batch_size": 64},
        "seed": 3,
    }  # fmt: skip
    form = job_form.filled_with(asked)
    assert job_form.body_of(form) == asked
    read = job_form.read(form).request
    assert read is not None
    assert read.as_sent()["method"]["cycles"] == 4
    assert job_form.body_of({"method.type": "auto", "recipe.optimizer.betas": "0.8, 0.9", "seed": " "}) == {
        "method": {"type": "auto"},
        "recipe": {"optimizer": {"betas": [0.8, 0.9]}},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"normalize": {"mean": [0.5], "std": [0.25]}}},
        {"recipe": {"distillation": {"teacher": "ckpt_2", "temperature": 2.0}}},
        {"metadata": {"note": "a, b=c", "{": "}"}},
        {"method": {"type": "cyclic_swa", "high": {"milestones": [0.5]}}, "classes": ["3", "7"]},
        {"method": {"type": "soup", "checkpoints": ["ckpt_1", "ckpt_2"]}},
    ],
)
def test_a_clone_asks_for_what_its_job_was_asked_for(app: App, changes: dict[str, Any]) -> None:
    asked = {"checkpoint": "ckpt_1", "dataset": "ds_1", "method": {"type": "cyclic_swa"}} | changes
    job = store_of(app).jobs.create(MINE, spec(), None, {}, request=asked).id
    page = sign_in(app).get(f"/jobs/new?clone={job}").text
    form = {
        name: unescape(value) for name, value in re.findall(r'<input id="[^"]+" name="([^"]+)" value="([^"]+)"', page)
    }
    one = r'<select[^>]* name="([^"]+)"[^>]*>(?:(?!</select>).)*?<option value="([^"]+)" selected'
    chosen = re.findall(one, page, re.DOTALL)
    sent = job_form.body_of(form | dict(chosen))
    assert {name: sent[name] for name in asked} == asked


def test_a_clone_of_a_job_whose_request_is_not_kept_has_its_options(app: App) -> None:
    job = store_of(app).jobs.create(MINE, spec(method=CyclicSwa(cycles=7), seed=42), None, {}).id
    page = sign_in(app).get(f"/jobs/new?clone={job}").text
    assert re.search(r'name="method.cycles" value="7"', page)
    assert re.search(r'name="seed" value="42"', page)


def test_whatever_is_typed_is_a_fault_of_its_field(app: App) -> None:
    base = {"checkpoint": "ckpt_1", "dataset": "ds_1", "method.type": "cyclic_swa"}
    for odd in (
        {"seed": "[" * 5000},
        {"recipe.normalize": "auto", "recipe.normalize.mean": "1"},
        {"metadata": "{" * 5000},
    ):
        answer = sign_in(app).post("/jobs/new/preview", **base, **odd)
        assert answer.status_code == 200, answer.text
    assert job_form.body_of(base | {"method.high.milestones": "0.5"})["method"]["high"]["milestones"] == [0.5]


def test_a_preview_is_no_change(app: App) -> None:
    reader = sign_in(app, scopes=("read",))
    assert reader.post("/jobs/new/preview", **{"method.type": "auto"}).status_code == 200
    assert reader.post("/jobs/new/preview", csrf="", **{"method.type": "auto"}).status_code == 403
    assert reader.post("/jobs/new", **{"method.type": "auto"}).status_code == 403
    assert "New job</a>" not in reader.get("/").text.split("</form>")[0]


def test_a_form_that_does_not_fit_names_the_field() -> None:
    base = {"checkpoint": "ckpt_1", "dataset": "ds_1", "method.type": "cyclic_swa"}
    wrong = {"method.cycles": "many", "method.high.lr": "-1", "recipe.batch_size": "1", "seed": "1.5", "name": "=x"}
    for path, text in wrong.items():
        filled = job_form.read(base | {path: text})
        assert filled.request is None
        assert path in filled.faults, (path, filled.faults)
    assert set(job_form.read({"method.type": "auto"}).faults) == {"checkpoint", "dataset"}
    assert job_form.read(base | {"method.type": "none at all"}).request is None
    assert "" in job_form.read(base | {"method.nonsense": "1"}).faults
