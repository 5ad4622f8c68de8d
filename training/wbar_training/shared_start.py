"""What the children of a study find out about their start, found out once on each host: they have the start in common.

The evaluation of the start depends on the network, the images, the seed and the way images are fed, and not on what a study
varies most: batch, rate, optimizer, method. It is kept in a folder of the study under the digest of all that it depends on, the
thread count among it, so that a child which reads it has the bits that it would have computed.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wbar import __version__
from wbar.scores import Score
from wbar.spec import canonical, network_document
from wbar_training.distributed.ranks import Ranks
from wbar_training.evaluate import HeldOutOutputs, Outputs
from wbar_training.evaluator import Scores, StartEvaluation
from wbar_training.setup import Setup

LARGEST = 64 * 2**20  # bytes of outputs that are kept: those of many classes or pixels are computed again
OF_STEPS = {
    "batch_size",
    "optimizer",
    "accumulate",
    "grad_clip_norm",
}  # of the recipe: of steps alone, and none is taken yet


@dataclass(frozen=True)
class StartFindings:
    """The evaluation of the start.

    training: its score on augmented training images.
    warning: what is to be said about a start that is near chance.
    """

    evaluation: StartEvaluation
    training: Score
    warning: str | None


def findings(setup: Setup, folder: Path | None, measure: Callable[[], StartFindings]) -> StartFindings:
    """Return what a job of the same study found out about the same start, or else `measure` it, and keep it for the others.

    folder: of the study, on this host; None: nothing is shared.
    """
    spec = setup.spec
    # A classifier trained by itself is no start that others have; the answers on probe images need the network as it stands.
    alone = spec.recipe.head_epochs or spec.recipe.devices > 1 or spec.probe is not None or Ranks.here().size > 1
    if folder is None or alone:
        return measure()
    path = folder / f"start-{_digest(setup)}.pt"
    found = _read(path)
    if found is None:
        found = measure()
        _write(path, found)
    return found


def _digest(setup: Setup) -> str:
    spec, plan = setup.spec, setup.plan
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else "cpu"
    recipe = {name: value for name, value in plan.recipe.model_dump(mode="json").items() if name not in OF_STEPS}
    inputs = {
        "version": [__version__, str(torch.__version__)],
        "device": [device, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()],
        "start": [spec.start.sha256, spec.start.prefix],
        "network": network_document(asdict(spec.network)),
        "images": [spec.dataset.blob, *(f"{one.name}={one.dataset.blob}" for one in spec.evaluation)],
        "select": [spec.selects, spec.select_on],
        "classes": spec.classes,
        "seed": spec.seed,
        "find_normalization": spec.find_normalization,
        "recipe": recipe,
    }
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()


def _read(path: Path) -> StartFindings | None:
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        one = document["evaluation"]
        evaluation = StartEvaluation(
            as_it_came=_scores(one["as_it_came"]),
            recomputed=_scores(one["recomputed"]),
            outputs=_outputs(one["outputs"]),
            recomputed_outputs=_outputs(one["recomputed_outputs"]),
        )
        return StartFindings(evaluation, Score.model_validate(document["training"]), document["warning"])
    except FileNotFoundError:
        return None
    except Exception:
        path.unlink(missing_ok=True)  # a damaged file surfaces as almost any exception; the start is evaluated again
        return None


def _write(path: Path, found: StartFindings) -> None:
    evaluation = found.evaluation
    held_out = {"outputs": evaluation.outputs, "recomputed_outputs": evaluation.recomputed_outputs}
    kept = [part for one in held_out.values() for part in (one.report, one.selection, *one.sets.values()) if part]
    if sum(part.answers.nbytes + part.losses.nbytes for part in kept) > LARGEST:
        return
    scores = {"as_it_came": evaluation.as_it_came, "recomputed": evaluation.recomputed}
    document = {
        "evaluation": {
            **{name: _of_scores(one) for name, one in scores.items()},
            **{name: _of_outputs(one) for name, one in held_out.items()},
        },
        "training": found.training.model_dump(),
        "warning": found.warning,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(document, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError):  # no room on the disk: the others measure it again
        temporary.unlink(missing_ok=True)


def _of_scores(scores: Scores) -> dict[str, Any]:
    return {"report": scores.report.model_dump(), "sets": {name: one.model_dump() for name, one in scores.sets.items()}}


def _scores(document: dict[str, Any]) -> Scores:
    sets = {name: Score.model_validate(one) for name, one in document["sets"].items()}
    return Scores(Score.model_validate(document["report"]), sets)


def _of_outputs(outputs: HeldOutOutputs) -> dict[str, Any]:
    selection = outputs.selection and vars(outputs.selection)
    return {
        "report": vars(outputs.report),
        "selection": selection,
        "sets": {name: vars(one) for name, one in outputs.sets.items()},
    }


def _outputs(document: dict[str, Any]) -> HeldOutOutputs:
    selection = document["selection"]
    return HeldOutOutputs(
        Outputs(**document["report"]),
        Outputs(**selection) if selection else None,
        {name: Outputs(**one) for name, one in document["sets"].items()},
    )
