"""The comparisons on the evaluation sets: for each set, the scores that are had by comparison."""

from collections.abc import Mapping
from typing import Any

from wbar.results import Comparisons, EvaluatedSet
from wbar.scores import Score
from wbar_training.job_data import JobData

OnSets = Mapping[str, Score]  # the scores of one comparison, by set


def evaluated_sets(data: JobData, comparisons: Mapping[str, OnSets]) -> dict[str, EvaluatedSet]:
    """Return the evaluation sets of a result. comparisons: by field of `Comparisons`, those that the job has."""
    return {
        name: EvaluatedSet(
            images=len(split),
            selected_on=name == data.select_on,
            metrics=Comparisons(**{field: on_sets[name] for field, on_sets in comparisons.items() if name in on_sets}),
        )
        for name, split in data.sets.items()
    }


def stored(on_sets: OnSets) -> dict[str, dict[str, Any]]:
    """Return scores as a resumable state holds them."""
    return {name: score.model_dump() for name, score in on_sets.items()}


def read(stored_scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Return what `stored` stored."""
    return {name: Score.model_validate(score) for name, score in stored_scores.items()}
