"""What a command works on: an id, or a name that one object alone has."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from wbar.cli.output import note
from wbar.errors import NotFound

if TYPE_CHECKING:
    from wbar.client import Client

MOST = 5  # that are named where several are meant


@dataclass(frozen=True)
class _Kind:
    noun: str
    prefix: str
    listed: str  # the command that lists them


JOB = _Kind("job", "job_", "wbar jobs")
CHECKPOINT = _Kind("checkpoint", "ckpt_", "wbar checkpoints")
DATASET = _Kind("dataset", "ds_", "wbar datasets")
STUDY = _Kind("study", "study_", "wbar study list")
KINDS = (JOB, CHECKPOINT, DATASET, STUDY)


def job_of(client: "Client", text: str) -> str:
    """Return the id of the job that is meant. Raises NotFound, ValueError where several have the name."""
    if text.startswith(JOB.prefix):
        return text
    named = [*client.jobs.iterate(name=text)] if text else []
    # Where no name has the text in it, one may be near it.
    return _id_of(JOB, text, named or client.jobs.list(limit=100).data)


def checkpoint_of(client: "Client", text: str) -> str:
    """Return the id of the checkpoint that is meant. Raises as `job_of`."""
    return text if text.startswith(CHECKPOINT.prefix) else _id_of(CHECKPOINT, text, client.checkpoints.iterate())


def dataset_of(client: "Client", text: str) -> str:
    """Return the id of the dataset that is meant. Raises as `job_of`."""
    return text if text.startswith(DATASET.prefix) else _id_of(DATASET, text, client.datasets.iterate())


def study_of(client: "Client", text: str) -> str:
    """Return the id of the study that is meant. Raises as `job_of`."""
    return text if text.startswith(STUDY.prefix) else _id_of(STUDY, text, client.studies.iterate())


def in_request(client: "Client", body: dict[str, Any]) -> dict[str, Any]:
    """Return a request for a job with ids in the place of names. Raises as `job_of`."""
    made = dict(body)
    for field, find in (("checkpoint", checkpoint_of), ("dataset", dataset_of), ("probe", dataset_of)):
        if isinstance(made.get(field), str):
            made[field] = find(client, made[field])
    if isinstance(made.get("evaluate"), dict):
        made["evaluate"] = {name: dataset_of(client, str(one)) for name, one in made["evaluate"].items()}
    recipe = made.get("recipe")
    distillation = recipe.get("distillation") if isinstance(recipe, dict) else None
    if isinstance(distillation, dict) and isinstance(distillation.get("teacher"), str):
        teacher = _teacher_of(client, distillation["teacher"])
        made["recipe"] = {**made["recipe"], "distillation": distillation | {"teacher": teacher}}
    method = made.get("method")
    if isinstance(method, dict) and isinstance(method.get("checkpoints"), list):
        made["method"] = method | {"checkpoints": [checkpoint_of(client, str(one)) for one in method["checkpoints"]]}
    return made


def _teacher_of(client: "Client", text: str) -> str:
    """Return the id of a teacher: a job's id as it is, else that of the checkpoint that is meant. Raises as `job_of`."""
    return text if text.startswith(JOB.prefix) else checkpoint_of(client, text)


def _id_of(kind: _Kind, text: str, items: Iterable[Any]) -> str:
    other = next((one for one in KINDS if one is not kind and text.startswith(one.prefix)), None)
    if other is not None:
        raise NotFound(f"{text} is the id of a {other.noun}, and a {kind.noun} is asked for: see `{kind.listed}`")
    names = [(item.name, item.id) for item in items if item.name]
    meant = [one for name, one in names if name == text]
    if len(meant) == 1:
        note(f"{text} is {meant[0]}", "dim")
        return str(meant[0])
    if meant:
        shown = ", ".join(meant[:MOST]) + (", …" if len(meant) > MOST else "")
        raise ValueError(f"{len(meant)} {kind.noun}s are called {text!r}, so give the id of one: {shown}")
    near = _near(text, names)
    raise NotFound(
        f"no {kind.noun} is called {text!r}{near or '.'} Ids begin with {kind.prefix}, and `{kind.listed}` lists them"
    )


def _near(text: str, names: list[tuple[str, str]]) -> str:
    """Return a question about the newest name that the text may stand for; nothing where none is near."""
    by_folded = {name.casefold(): (name, one) for name, one in reversed(names)}
    found = [folded for folded in by_folded if text and text.casefold() in folded]
    found = found or get_close_matches(text.casefold(), by_folded, n=1)
    if not found:
        return ""
    name, one = by_folded[found[-1]]
    return f"; did you mean {name!r}, {one}?"
