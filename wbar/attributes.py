"""The outputs of several attributes, end to end: one for each category, and which belong together is in their names.

An output is named `attribute=category`; the name of an attribute has no equals sign, so the name can be read one way only.
"""

from collections.abc import Sequence

from wbar.errors import ClassesMismatch

SIGN = "="


def output_name(attribute: str, category: str) -> str:
    """Return the name of the output of a category."""
    return f"{attribute}{SIGN}{category}"


def outputs_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the outputs of each attribute, by its name. names: of all outputs, in their order, each `attribute=category`."""
    outputs: dict[str, list[int]] = {}
    for output, name in enumerate(names):
        outputs.setdefault(name.partition(SIGN)[0], []).append(output)
    return outputs


def categories_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the categories of each attribute, by its name. names: as of `outputs_of`."""
    return {
        attribute: [names[output].partition(SIGN)[2] for output in outputs]
        for attribute, outputs in outputs_of(names).items()
    }


def check_outputs(classes: Sequence[str] | None, outputs: int, dataset: Sequence[str]) -> None:
    """Raise ClassesMismatch (422) unless every output of the network is a category of an attribute.

    classes: names of the outputs, where they are given.
    outputs: of the network.
    dataset: the dataset's classes.
    """
    if classes is None:
        if len(dataset) < outputs:
            raise ClassesMismatch(
                f"the dataset's attributes have {len(dataset)} categories together ({', '.join(dataset[:5])}"
                f"{', …' if len(dataset) > 5 else ''}) and the checkpoint's network {outputs} outputs: name them all with "
                '`classes`, or set recipe.head to "reset" for a new head'
            )
        return
    strange = [name for name in classes if not all(name.partition(SIGN))]
    if strange:
        raise ClassesMismatch(
            f"`classes` names {strange[:20]}, and the dataset has attributes: name each output as attribute=category, such as "
            f"{dataset[0]!r}"
        )
    single = [attribute for attribute, its_own in outputs_of(classes).items() if len(its_own) < 2]
    if single:
        raise ClassesMismatch(f"`classes` names one category of {single[:20]}: an attribute has two or more")
