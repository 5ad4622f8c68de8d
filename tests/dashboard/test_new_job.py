"""The form of a new job against a real service, as a browser sends it."""

import re
from pathlib import Path

import httpx

from tests.conftest import Service
from tests.material import write_archive, write_start


def test_a_form_that_is_sent_twice_makes_one_job(service: Service, tmp_path: Path) -> None:
    with service.client() as client, httpx.Client(base_url=service.url, trust_env=False) as browser:
        link = client.request("POST", "/v1/sign-in-links").json()["url"].partition("link=")[2]
        browser.post("/sign-in", data={"link": link, "next": "/"})
        inputs = {
            "checkpoint": client.checkpoints.create(write_start(tmp_path)).id,
            "dataset": client.datasets.create(write_archive(tmp_path)).id,
        }
        page = browser.get("/jobs/new").text
        hidden = {name: re.search(f'name="{name}" value="([^"]+)"', page) for name in ("csrf", "token")}
        form = {name: found[1] for name, found in hidden.items() if found} | inputs
        form |= {"name": "sent twice", "method.type": "none", "method.epochs": "1"}
        answers = [browser.post("/jobs/new", data=form) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [303, 303], answers[0].text
        assert answers[0].headers["location"] == answers[1].headers["location"]
        other = browser.post("/jobs/new", data=form | {"method.epochs": "2"})
        assert other.headers["location"] != answers[0].headers["location"], "filled otherwise, it asks for another job"
        made = client.request("GET", "/v1/jobs?name=sent twice").json()["data"]
        assert len(made) == 2
        for job in made:
            client.jobs.wait(job["id"], timeout=120)
