"""What a job would be worth knowing about before it is spent: inputs that fit together, and perhaps not as they were meant."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field

from wbar.datasets import DatasetFacts
from wbar.spec import JobSpec

NAMED = 3  # outputs that a warning names with the class each stands for


class JobWarning(BaseModel):
    """A warning about a job that would be created all the same."""

    model_config = ConfigDict(frozen=True)

    pointer: str = Field(description="JSON pointer to the field of the request that it is about: `/dataset`.")
    detail: str


def warnings_about(spec: JobSpec, facts: DatasetFacts) -> Iterator[JobWarning]:
    """Yield the warnings about a resolved job. facts: of its dataset."""
    outputs, classes = spec.network.classes, facts.classes
    if spec.classes is not None:
        return
    names = spec.start.pretrained.classes if spec.start.pretrained else None
    if names is not None and len(names) == outputs and names != classes:
        unnamed = [name for name in classes if name not in names]
        which = (
            f"{len(unnamed)} of the dataset's are not among them ({_some(unnamed)})"
            if unnamed
            else "some names occur twice"
        )
        yield JobWarning(
            pointer="/dataset",
            detail=f"the checkpoint came with names of its classes ({_some(names)}), and {which}: output n is taken for the "
            f"dataset's class n ({_some(classes)}). If these are the same classes by other names, give `classes`, the "
            "dataset's names in the order of the outputs; if they are others, set `recipe.head` to `reset`",
        )
    if len(classes) == outputs:
        return
    # More classes than outputs are refused: `wbar.resolve.resolve_classes`.
    first = ", ".join(f"{name!r} is output {n}" for n, name in enumerate(classes[:NAMED]))
    more = ", …" if len(classes) > NAMED else ""
    yield JobWarning(
        pointer="/dataset",
        detail=f"the dataset has {len(classes)} classes and the checkpoint's network {outputs} outputs: in the order of "
        f"their names {first}{more}, and {outputs - len(classes)} outputs get no images. If the network was trained on other "
        'classes, set `recipe.head` to "reset", which starts a new last layer; if on these among others, give `classes`, the '
        "names of all its outputs in their order",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:NAMED])) + (", …" if len(names) > NAMED else "")
