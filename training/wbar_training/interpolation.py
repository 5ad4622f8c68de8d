"""The line from the start to w̄, and the point of it that is delivered: w_α = (1 − α)·w_0 + α·w̄.

It is WiSE-FT (Wortsman et al. 2022, section 3). BatchNorm statistics are recomputed at every point, which is evaluated on
both splits; α is given, or the selection split chooses it by `averages.choice.alpha_of`: 1, unless another one is
lower by more than a standard error.
"""

from dataclasses import replace

from torch import Tensor

from wbar.choices import AlphaLine, AlphaPoint, SetPoint
from wbar.errors import Diverged
from wbar.method import Interpolate, SelectBy
from wbar_training.averages.average import Finished, on_line
from wbar_training.averages.choice import alpha_of
from wbar_training.evaluate import HeldOutOutputs
from wbar_training.reporter import Reporter
from wbar_training.setup import Setup


def interpolated(
    setup: Setup, reporter: Reporter, asked: Interpolate, finished: Finished, by: SelectBy = "loss"
) -> tuple[Finished, AlphaLine]:
    """Return the chosen point of the line in the place of the mean, and the whole line.

    by: what the selection split compares. Raises Diverged if the losses of the mean itself, or at a fixed α, are not
    finite; other points may have none, and are not chosen.
    """
    start, data = setup.start(), setup.data

    def point(alpha: float) -> Finished:
        if alpha == 1:
            return finished
        return replace(finished, mean=on_line(setup.model, start, finished.mean, alpha), own_statistics=False)

    found = {alpha: _evaluated(setup, point(alpha), alpha in (1, asked.choose)) for alpha in asked.points()}
    values = dict[float, Tensor]()
    if data.selection is not None:
        for alpha, outputs in found.items():
            if outputs is not None and outputs.selection is not None:
                values[alpha] = data.task.per_image(outputs.selection, data.selection.labels, by)
    chosen = alpha_of(values) if asked.choose == "selection" else float(asked.choose)
    points = [_recorded(setup, alpha, outputs) for alpha, outputs in found.items()]
    line = AlphaLine(chosen=chosen, by="selection" if asked.choose == "selection" else "request", points=points)
    reporter.log("info", f"interpolate: {line.in_words()}")
    selection = finished.selection
    if selection is not None and chosen != 1:
        selection = selection.model_copy(update={"loss": None})  # it was of the mean itself
    return replace(point(chosen), selection=selection), line


def _evaluated(setup: Setup, point: Finished, must_be_finite: bool) -> HeldOutOutputs | None:
    evaluator = setup.evaluator
    try:
        evaluator.hold(point.mean, recompute=not point.own_statistics)
        return evaluator.predict_held_out(evaluator.network)
    except Diverged:
        if must_be_finite:
            raise
        return None


def _recorded(setup: Setup, alpha: float, outputs: HeldOutOutputs | None) -> AlphaPoint:
    if outputs is None:
        return AlphaPoint(alpha=alpha, accuracy=None, loss=None, selection_loss=None)
    score = setup.evaluator.score(outputs.report)
    selection = None if outputs.selection is None else outputs.selection.losses.mean().item()
    sets = setup.evaluator.scores(outputs).sets
    return AlphaPoint(
        alpha=alpha,
        accuracy=score.accuracy,
        loss=score.loss,
        selection_loss=selection,
        evaluation={name: SetPoint(accuracy=one.accuracy, loss=one.loss) for name, one in sets.items()},
    )
