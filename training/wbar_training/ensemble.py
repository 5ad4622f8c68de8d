"""An ensemble whose members are run side by side, where their outputs are too many to keep for all images.

    p̄(x) = Σ_m a_m·softmax(f_m(x)) / Σ_m a_m

For as many images as fit, one member after another is put into the evaluator's network and its probabilities are added up;
then the next images. So one network and a bounded number of probabilities are in memory, whatever the number of members.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wbar_training.data.examples import Examples
from wbar_training.distributed.ranks import Ranks
from wbar_training.evaluate import HeldOutOutputs, Outputs, joined
from wbar_training.evaluator import Scores
from wbar_training.setup import Setup

BYTES = 2**30  # of probabilities that are added up at once, about


@dataclass(frozen=True)
class Member:
    """A network of an ensemble. read: its whole state dict, with its own BatchNorm statistics."""

    weight: float
    read: Callable[[], Mapping[str, Tensor]]


def ensemble_outputs(setup: Setup, members: Sequence[Member]) -> HeldOutOutputs:
    """Return the outputs of the ensemble on all that is held out; the evaluator's network holds the last member afterwards."""
    data = setup.data
    report = _together(setup, members, data.report)
    sets = {name: _together(setup, members, split) for name, split in data.sets.items()}
    if data.select_on is not None:
        return HeldOutOutputs(report, sets[data.select_on], sets)
    selection = None if data.selection is None else _together(setup, members, data.selection)
    return HeldOutOutputs(report, selection, sets)


def ensemble_scores(setup: Setup, members: Sequence[tuple[Member, HeldOutOutputs]]) -> Scores | None:
    """Score the mean of the members' outputs, weighted as they are; None where the task has no ensemble.

    members: each with its own outputs on all that is held out, which are used where they are kept for every image.
    """
    data, evaluator = setup.data, setup.evaluator
    if not data.task.has_ensemble:
        return None
    if not data.task.averages_answers:
        return evaluator.scores(ensemble_outputs(setup, [member for member, _ in members]))
    total = sum(member.weight for member, _ in members)
    shares = [(member.weight / total, outputs) for member, outputs in members]
    report = sum((share * each.report.answers.double() for share, each in shares), torch.zeros(()))
    selection = None
    if data.selection is not None:
        chosen_by = [(share, each.selection) for share, each in shares if each.selection is not None]
        selection = sum((share * each.answers.double() for share, each in chosen_by), torch.zeros(()))
    sets = {
        name: sum((share * each.sets[name].answers.double() for share, each in shares), torch.zeros(()))
        for name in data.sets
    }
    plain = data.task.score(report, data.report.labels)
    plain = evaluator.calibrated(plain, report, selection)
    return Scores(plain, evaluator.on_sets(sets, selection))


@torch.no_grad()
def _together(setup: Setup, members: Sequence[Member], split: Examples) -> Outputs:
    ranks, parts = Ranks.here(), split.parts()
    own, kept = deque(parts[ranks.share(len(parts))]), list[Outputs]()
    shares = [member.weight / sum(one.weight for one in members) for member in members]
    while own:
        group, sums = list[slice](), list[Tensor]()
        _hold(setup, members[0])
        while own and sum(one.nbytes for one in sums) < BYTES:
            group.append(own.popleft())
            sums.append(_probabilities(setup, split, group[-1]).mul_(shares[0]))
        for member, share in zip(members[1:], shares[1:], strict=True):
            _hold(setup, member)
            for part, total in zip(group, sums, strict=True):
                total.add_(_probabilities(setup, split, part), alpha=share)
        for part, total in zip(group, sums, strict=True):
            kept.append(setup.data.task.outputs_of(total, split.batch(part, setup.data.prepare).labels))
    return joined([one for share in ranks.gathered(kept) for one in share])


def _hold(setup: Setup, member: Member) -> None:
    setup.evaluator.network.load_state_dict(member.read())
    setup.evaluator.network.eval()


def _probabilities(setup: Setup, split: Examples, part: slice) -> Tensor:
    autocast, inputs = setup.plan.autocast, split.batch(part, setup.data.prepare).inputs
    with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None):
        outputs = setup.evaluator.network(inputs)
    setup.evaluator.tick("evaluate", len(inputs))
    return setup.data.task.probabilities(outputs)
