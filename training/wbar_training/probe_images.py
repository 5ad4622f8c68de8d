"""The outputs of a job's networks on its probe images, which need no labels, and what these outputs say of each other.

The start is compared with w̄, the ensemble with w̄ (what averaging weights instead of outputs leaves over), and the start and
w̄ each with themselves on the same images changed a little; `output_comparison` has the formulas.

Outputs are taken while the network is there: those of the start and of every w̄_n are part of the resumable state, the others
are had when the job ends. No measurement changes a weight.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from wbar.errors import Diverged
from wbar.probe_results import MOST_SHOWN, THUMBNAIL, Consistency, ProbeAnswer, ProbeImage, ProbeResult, Stability
from wbar_training.data.examples import Batch
from wbar_training.data.packed import Split
from wbar_training.distributed.ranks import Ranks
from wbar_training.evaluate import Outputs, predict
from wbar_training.outcome import ProbeFiles
from wbar_training.output_comparison import change, divergence, share_agreeing, stability
from wbar_training.probes import CHANGED, Probes
from wbar_training.setup import Setup

SUM = "ensemble_sum"  # of the members' outputs; it becomes `ensemble`
CURVE = "curve_"  # w̄_n is CURVE n

Kept = dict[str, Tensor]  # by comparison, (N, outputs) probabilities


def probabilities(setup: Setup, model: nn.Module, images: Split) -> Tensor:
    """Return a network's probabilities on images without labels, (N, outputs) float64 on the CPU, in eval mode."""
    task, prepare = setup.data.task, setup.data.prepare

    def answered(network: nn.Module, batch: Batch) -> Outputs:
        found = task.softened(task.forward(network, batch.inputs).double().cpu())
        return Outputs(found, torch.zeros(len(found), dtype=torch.float64))

    tick = partial(setup.evaluator.tick, "evaluate")
    parts = images.parts()
    return predict(
        model, parts, lambda part, _: images.batch(part, prepare), answered, setup.plan.autocast, tick
    ).answers


def record(setup: Setup, kept: Kept, name: str, model: nn.Module) -> None:
    """Keep a network's outputs under a name, where the job has probe images. Of the curve in float32: there are many."""
    if setup.data.probe is not None and setup.spec.probe is not None:
        found = probabilities(setup, model, setup.data.probe.images)
        kept[name] = found.float() if name.startswith(CURVE) else found


def add_to_ensemble(kept: Kept, name: str, weight: float = 1.0) -> None:
    """Add the outputs that are kept under a name to the ensemble's sum, where there are any."""
    if name in kept:
        added = weight * kept[name].double()
        kept[SUM] = kept[SUM] + added if SUM in kept else added


def conclude(setup: Setup, kept: Kept, averaged: Path, members: float) -> tuple[ProbeResult, ProbeFiles | None]:
    """Compare the outputs, and write them; None for the files where another rank writes them.

    kept: with `start` and `averaged`.
    averaged: the weights file of w̄.
    members: the sum of the ensemble's weights.

    Raises Diverged where an output is not finite.
    """
    assert setup.data.probe is not None
    outputs = {name: found for name, found in kept.items() if name != SUM}
    if SUM in kept:
        outputs["ensemble"] = kept[SUM] / members
    for name, found in outputs.items():
        if not bool(torch.isfinite(found).all()):
            raise Diverged(f"the outputs of {name} on the probe images are not finite")
    distributions = setup.data.task.distributions
    start, mean = distributions(outputs["start"]), distributions(outputs["averaged"])
    ensemble = distributions(outputs["ensemble"]) if "ensemble" in outputs else None
    changed = change(start, mean)
    order = torch.sort(changed.mean(dim=1), descending=True, stable=True).indices[:MOST_SHOWN]
    result = ProbeResult(
        images=len(start),
        networks=sorted(outputs, key=_place),
        kept=share_agreeing(start, mean),
        agreement=None if ensemble is None else share_agreeing(ensemble, mean),
        kl=None if ensemble is None else divergence(ensemble, mean),
        consistency=_consistency(setup, {"start": setup.start(), "averaged": setup.read(averaged)}, outputs),
        most_changed=[_shown(setup, index, changed[index], outputs) for index in order.tolist()],
    )
    if not Ranks.here().leads:
        return result, None
    files = ProbeFiles(averaged.with_name("probe.npz"), averaged.with_name("probe.png"))
    _write(files.outputs, outputs, setup.data.probe.names, setup.data.output_names)
    _sprite(setup.data.probe, order).save(files.thumbnails, optimize=True)
    return result, files


def _consistency(setup: Setup, weights: dict[str, dict[str, Tensor]], outputs: Kept) -> list[Consistency]:
    assert setup.data.probe is not None
    images, network = setup.data.probe.images.images, setup.evaluator.network
    distributions = setup.data.task.distributions
    found = dict[tuple[str, str], Stability]()
    for name, tensors in weights.items():
        network.load_state_dict(tensors)
        before = distributions(outputs[name])
        for what, ways in CHANGED.items():
            pairs = [
                stability(before, distributions(probabilities(setup, network, _changed(images, way)))) for way in ways
            ]
            shares, gaps = zip(*pairs, strict=True)
            found[name, what] = Stability(unchanged=_mean(shares), probability_change=min(1.0, _mean(gaps)))
    return [Consistency(change=what, start=found["start", what], averaged=found["averaged", what]) for what in CHANGED]


def _changed(images: Tensor, way: Callable[[Tensor], Tensor]) -> Split:
    return Split(way(images), torch.zeros(len(images), dtype=torch.int64))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _shown(setup: Setup, index: int, changed: Tensor, outputs: Kept) -> ProbeImage:
    """Return an image and its answers. changed: of its distributions, (distributions,)."""
    assert setup.data.probe is not None
    names, most = setup.data.probe.names, int(changed.argmax())

    def answer(network: str) -> ProbeAnswer:
        p = outputs[network][index]
        best = setup.data.task.most_probable(p, most)
        return ProbeAnswer(label=setup.data.output_names[best], probability=p[best].item())

    return ProbeImage(
        index=index,
        name=names[index] if names else None,
        changed=changed.mean().item(),
        start=answer("start"),
        averaged=answer("averaged"),
    )


# The files.


def _place(name: str) -> tuple[bool, int, str]:
    """Sort the comparisons first, then the curve by n."""
    n = name.removeprefix(CURVE)
    return (name.startswith(CURVE), int(n) if n.isdigit() else 0, name)


def _write(path: Path, outputs: Kept, names: Sequence[str], classes: Sequence[str]) -> None:
    """Write the outputs as float32, (N, outputs) by comparison, with the names of the images and the classes."""
    arrays = {name: outputs[name].float().numpy() for name in sorted(outputs, key=_place)}
    arrays |= {"classes": np.array(list(classes), dtype=np.str_), "names": np.array(list(names), dtype=np.str_)}
    np.savez(path, allow_pickle=False, **arrays)


def _sprite(probes: Probes, order: Tensor) -> Image.Image:
    """Return the images of these indices side by side, as squares; small ones are enlarged without smoothing."""
    sheet = Image.new("RGB", (THUMBNAIL * len(order), THUMBNAIL))
    for column, index in enumerate(order.tolist()):
        pixels = probes.images.images[index]
        image = Image.fromarray(pixels[:3].expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
        way = Image.Resampling.NEAREST if max(image.size) <= THUMBNAIL else Image.Resampling.BILINEAR
        sheet.paste(image.resize((THUMBNAIL, THUMBNAIL), way), (column * THUMBNAIL, 0))
    return sheet
