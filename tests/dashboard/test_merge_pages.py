"""The pages of merges without a browser: what a form becomes, what it says when it does not fit, and who may do what."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select, update

from tests.dashboard.test_pages import MINE, OTHER, sign_in, store_of
from tests.service.app import App, app_in
from wbar.checkpoints import Fault
from wbar.merges import DareMerge, MeanMerge, MergeSource, MergeSpec, TaskArithmeticMerge, TiesMerge
from wbar_store.database import now
from wbar_store.repository import PageRequest
from wbar_store.store import Store
from wbar_store.tables import checkpoints, merge_inputs

TWO = "ckpt_a\nckpt_b"


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    with app_in(tmp_path) as made:
        common = {"tenant": MINE.name, "name": "x", "bytes": 8, "sha256": "a" * 64, "given": {}, "attempts": 1}
        rows = [
            {"id": f"ckpt_{one}", "status": status, "weights": weights, "created_at": now(), **common}
            for one, status, weights in (
                ("a", "ready", "a" * 64),
                ("b", "ready", "b" * 64),
                ("c", "processing", None),
            )
        ]
        with store_of(made).database.write() as connection:
            for row in rows:
                connection.execute(insert(checkpoints).values(**row))
        yield made


@pytest.mark.parametrize(
    ("form", "method"),
    [
        ({"method": "mean"}, MeanMerge()),
        ({"method": "mean", "weights": "1, 2"}, MeanMerge(weights=[1, 2])),
        ({"method": "1-sqrt"}, MeanMerge(shape="1-sqrt")),
        ({"method": "ema", "ema": "0.9"}, MeanMerge(ema=0.9)),
        ({"method": "task_arithmetic", "base": "ckpt_a", "scale": "0.4 0.5"}, TaskArithmeticMerge(
            type="task_arithmetic", scale=[0.4, 0.5])),
        ({"method": "ties", "base": "ckpt_a", "density": "0.3", "scale": "2"}, TiesMerge(
            type="ties", density=0.3, scale=2)),
        ({"method": "dare", "base": "ckpt_b"}, DareMerge(type="dare")),
    ],
)  # fmt: skip
def test_a_form_becomes_a_merge(app: App, form: dict[str, str], method: Any) -> None:
    browser, store = sign_in(app), store_of(app)
    made = browser.post("/merges", checkpoints=TWO, name="two runs", dtype="float16", **form)
    assert made.status_code == 303, made.text
    record = store.merges.page(MINE, PageRequest(1)).records[0]
    assert made.headers["location"] == f"/merges/{record.id}"
    assert record.spec.method == method
    assert [one.id for one in record.spec.sources] == ["ckpt_a", "ckpt_b"]
    assert (record.spec.base.id if record.spec.base else None) == form.get("base")
    assert (record.name, record.spec.dtype) == ("two runs", "float16")
    assert store.merges.overdue(False) == [], "a worker was told"
    shown = browser.get(f"/merges/{record.id}").text
    assert "ckpt_b" in shown
    assert record.id in browser.get("/merges").text


def test_a_form_that_does_not_fit_says_why_and_keeps_what_was_typed(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    for form, status, said in (
        ({"checkpoints": TWO, "method": "ties"}, 422, "give `base`"),
        ({"checkpoints": TWO, "weights": "1 2 3"}, 422, "3 weights for 2 checkpoints"),
        ({"checkpoints": TWO, "weights": "one two"}, 422, "method.weights.0"),
        ({"checkpoints": TWO, "method": "ema", "ema": "1"}, 422, "less than 1"),
        ({"checkpoints": "ckpt_a ckpt_nowhere"}, 404, "ckpt_nowhere"),
        ({"checkpoints": "ckpt_a, ckpt_c"}, 409, "ckpt_c is processing"),
        ({"checkpoints": "x"}, 422, "is no id of a checkpoint"),
        ({"checkpoints": TWO, "last": "3"}, 422, "`last` goes with one job"),
    ):
        refused = browser.post("/merges", **form)
        assert (refused.status_code, said in refused.text) == (status, True), (form, refused.text)
        assert form["checkpoints"].split()[0].strip(",") in refused.text
        assert "Value error" not in refused.text
    assert store.merges.page(MINE, PageRequest(1)).records == []
    assert "job_1</textarea>" in browser.get("/merges?checkpoints=job_1").text


def test_a_merge_is_cancelled_and_deleted_by_its_buttons(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    made = store.merges.claim(create(store))
    assert made is not None
    page = f"/merges/{made.id}"
    refused = browser.post(f"{page}/delete")
    assert (refused.status_code, "cancel it first" in refused.text) == (409, True)
    assert "Cancel</button>" in browser.get(page, headers={"HX-Request": "true"}).text
    assert browser.post(f"{page}/cancel").headers["location"] == page
    assert store.merges.get(MINE, made.id).status == "cancelled"
    assert "Cancel</button>" not in browser.get(page).text
    assert browser.post(f"{page}/delete").headers["location"] == "/merges"
    assert browser.post(f"{page}/delete").status_code == 303, "a second click is no fault"
    assert browser.get(page).status_code == 404
    failed = store.merges.claim(create(store))
    assert failed is not None
    store.merges.fail(failed.claim, Fault(code="checkpoints_differ", message="a has w, b has not"))
    shown = browser.get(f"/merges/{failed.id}").text
    assert "checkpoints_differ" in shown
    assert "a has w, b has not" in shown
    assert browser.post(f"/merges/{failed.id}/cancel").status_code == 409


def test_readers_look_and_strangers_see_nothing(app: App) -> None:
    store = store_of(app)
    made = create(store)
    reader, stranger = sign_in(app, scopes=("read",)), sign_in(app, OTHER)
    assert 'method="post" action="/merges' not in reader.get("/merges").text + reader.get(f"/merges/{made}").text
    for path in ("/merges", f"/merges/{made}/cancel", f"/merges/{made}/delete"):
        assert reader.post(path, checkpoints=TWO).status_code == 403
    assert made not in stranger.get("/merges").text
    assert stranger.get(f"/merges/{made}").status_code == 404
    assert stranger.post(f"/merges/{made}/cancel").status_code == 404
    assert store.merges.get(MINE, made).status == "queued"


def create(store: Store) -> str:
    """A queued merge."""
    spec = MergeSpec(sources=(MergeSource(id="ckpt_a", sha256="a" * 64),), base=None, method=MeanMerge(), dtype=None)
    return store.merges.create(MINE, spec, None, 8, None).id


def test_a_form_asks_for_a_folder_and_is_told_where_there_is_none(app: App) -> None:
    browser, store = sign_in(app), store_of(app)
    refused = browser.post("/merges", checkpoints=TWO, format="huggingface", max_shard_bytes="5000000")
    assert refused.status_code == 422
    assert "was not uploaded as a folder" in refused.text
    assert 'value="5000000"' in refused.text, "what was typed stays"
    refused = browser.post("/merges", checkpoints=TWO, lora_rank="4")
    assert (refused.status_code, "is no LoRA adapter" in refused.text) == (422, True)
    facts = {"format": "zip", "parameters": 1, "tensors": 1, "network": None, "source": "detected", "prefix": "",
               "ambiguous_with": None, "adapter": True}  # fmt: skip
    with store.database.write() as connection:
        connection.execute(update(checkpoints).values(facts=facts, content="c" * 64))
    made = browser.post("/merges", checkpoints=TWO, lora_rank="4")
    assert made.status_code == 303, made.text
    spec = store.merges.page(MINE, PageRequest(1)).records[0].spec
    assert (spec.method, spec.format) == (MeanMerge(lora_rank=4), "huggingface")
    assert spec.archives == {"ckpt_a": "c" * 64, "ckpt_b": "c" * 64}
    assert store.merges.claim(store.merges.page(MINE, PageRequest(1)).records[0].id) is not None
    with store.database.write() as connection:
        kept = connection.execute(select(merge_inputs.c.sha256)).scalars().all()
        connection.execute(update(checkpoints).values(facts=facts | {"adapter": False}))
    assert sorted(kept) == ["a" * 64, "b" * 64, "c" * 64], "the archive stays, too, while the merge has not ended"
    browser.post("/merges", checkpoints=TWO, format="huggingface", max_shard_bytes="5000000")
    spec = store.merges.page(MINE, PageRequest(1)).records[0].spec
    assert (spec.format, spec.max_shard_bytes) == ("huggingface", 5_000_000)
