"""Names on the command line: one that a single object has stands for its id; any other says how ids are found."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.client.test_cli import wbar
from tests.client.test_study_commands import SHORT
from tests.conftest import Service
from tests.material import write_archive, write_start


@dataclass(frozen=True)
class Named:
    checkpoint: str
    dataset: str
    twins: tuple[str, str]  # datasets of one name


@pytest.fixture(scope="module")
def named(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Named:
    folder = tmp_path_factory.mktemp("names")
    with service.client() as client:
        checkpoint = client.checkpoints.create(write_start(folder), name="a start of its own").id
        dataset = client.datasets.create(write_archive(folder), name="scans of its own").id
        twins = [client.datasets.create(write_archive(folder), name="twins").id for _ in range(2)]
    return Named(checkpoint, dataset, (twins[0], twins[1]))


def test_a_name_of_one_object_alone_is_as_good_as_its_id(service: Service, named: Named, tmp_path: Path) -> None:
    brief = ["--checkpoint", "a start of its own", "--dataset", "scans of its own", "--cycles", "1"]
    made = wbar(service, "submit", *brief, "--name", "digits-run")
    assert made.returncode == 0, made.stderr
    job = made.stdout.strip()
    assert f"a start of its own is {named.checkpoint}" in made.stderr
    assert "method cyclic_swa, 1 cycles, without a control. --method auto --control measures more" in made.stderr
    shown = wbar(service, "show", "digits-run", "--json")
    assert (json.loads(shown.stdout)["id"], shown.stderr) == (job, "")
    assert wbar(service, "watch", "digits-run").returncode == 0
    listed = json.loads(wbar(service, "jobs", "--dataset", "scans of its own", "--json").stdout)["data"]
    assert [one["id"] for one in listed] == [job]
    out = tmp_path / "out.csv"
    assert wbar(service, "export", "csv", "digits-run", "-o", str(out)).returncode == 0
    planned = wbar(service, "submit", *brief, "--probe", "scans of its own", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["probe"] == named.dataset
    again = wbar(service, "submit", *brief, "--evaluate", "again=scans of its own")
    assert f"evaluate.again is {named.dataset}, whose images are those of the job's dataset" in again.stderr
    study = wbar(service, "study", "create", *brief[:4], "--job", SHORT, "--seeds", "1", "--name", "a study of its own")
    assert study.returncode == 0, study.stderr
    assert json.loads(wbar(service, "study", "show", "a study of its own").stdout)["id"] == study.stdout.strip()
    assert wbar(service, "study", "watch", "a study of its own").returncode == 0
    assert wbar(service, "study", "delete", "a study of its own").stdout == f"{study.stdout.strip()}\n"
    assert wbar(service, "delete", "digits-run").stdout == f"{job}\n"
    assert wbar(service, "show", job).returncode == 3


def test_a_named_method_is_not_explained(service: Service, named: Named) -> None:
    brief = ["--checkpoint", named.checkpoint, "--dataset", named.dataset, "--dry-run"]
    assert "measures more" in wbar(service, "submit", *brief).stderr
    assert "measures more" not in wbar(service, "submit", *brief, "--method", "auto").stderr
    assert wbar(service, "submit", *brief, "--json").stderr == ""


def test_what_names_nothing_says_how_ids_are_found(service: Service, named: Named) -> None:
    for words, code, said in (
        (("show", "digits-run-2"), 3, "no job is called 'digits-run-2'"),
        (("show", "digits-run-2"), 3, "Ids begin with job_, and `wbar jobs` lists them"),
        (("datasets", "delete", "SCANS of"), 3, f"did you mean 'scans of its own', {named.dataset}?"),
        (("checkpoints", "delete", "a strat of its own"), 3, f"did you mean 'a start of its own', {named.checkpoint}?"),
        (
            ("datasets", "delete", "twins"),
            2,
            f"2 datasets are called 'twins', so give the id of one: {named.twins[1]}, ",
        ),
        (("watch", named.checkpoint), 3, f"{named.checkpoint} is the id of a checkpoint, and a job is asked for"),
        (
            ("submit", "--checkpoint", named.dataset, "--dataset", "x"),
            3,
            "is the id of a dataset, and a checkpoint is asked",
        ),
    ):
        done = wbar(service, *words)
        assert done.returncode == code, done.stderr
        assert said in " ".join(done.stderr.split())


def test_a_deletion_that_is_refused_says_what_needs_it(service: Service, named: Named) -> None:
    with service.client() as client:
        job = client.jobs.create(checkpoint=named.checkpoint, dataset=named.dataset, method={"cycles": 500})
        assert job.id is not None
        for what, one in (("datasets", named.dataset), ("checkpoints", named.checkpoint)):
            refused = wbar(service, what, "delete", one)
            assert (refused.returncode, f"needed by {job.id}" in refused.stderr) == (3, True)
        refused = wbar(service, "delete", job.id)
        assert (refused.returncode, "cancel it first" in refused.stderr) == (3, True)
        client.jobs.cancel(job.id)
    told = wbar(service, "download", job.id)
    assert f"{job.id} was cancelled and made no averaged weights" in told.stderr
    deleted = wbar(service, "datasets", "delete", named.twins[0], "--json")
    assert json.loads(deleted.stdout) == {"id": named.twins[0], "object": "dataset", "deleted": True}
    bare = json.loads(wbar(service, "datasets", "--limit", "1", "--json").stdout)
    assert bare == json.loads(wbar(service, "datasets", "list", "--limit", "1", "--json").stdout)
    assert json.loads(wbar(service, "checkpoints", "--limit", "1", "--json").stdout)["object"] == "list"


def test_the_help_begins_with_the_first_steps_and_has_every_command_in_a_section() -> None:
    said = wbar(None, "--help").stdout
    assert said.index("Begin with `wbar demo`") < said.index("Options:") < said.index("Begin here:")
    assert said.index("\n  up ") < said.index("\n  upload ") < said.index("\n  submit ") < said.index("\n  serve ")
    assert "Others:" not in said
