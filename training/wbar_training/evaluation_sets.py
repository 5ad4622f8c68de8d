"""The comparisons on the evaluation sets: for each set, the scores that are had by comparison."""

from collections.abc import Mapping

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
