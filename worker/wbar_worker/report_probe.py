"""The part of a report about a job's probe images: the numbers, the small changes, and the images that changed the most."""

from base64 import b64encode
from collections.abc import Iterator
from html import escape
from pathlib import Path

from wbar.probe_results import CHANGES, THUMBNAIL, ProbeAnswer, ProbeResult


def sections(probe: ProbeResult, thumbnails: Path | None) -> Iterator[str]:
    """Yield the section. thumbnails: PNG, the images of `most_changed` side by side; None: they are not shown."""
    yield "<h2>Probe images</h2>"
    yield f"<p class='note'>{probe.images:,} images, whose labels are not looked at. The outputs are at /probe.</p>"
    yield f"<p>w̄ predicts as the start does on {probe.kept:.2%} of them.</p>"
    if probe.agreement is not None and probe.kl is not None:
        yield (
            f"<p>w̄ and the ensemble of outputs agree on {probe.agreement:.2%}; the mean of KL(ensemble ‖ w̄) is {probe.kl:.3g} "
            "nats: that is what averaging weights instead of outputs leaves over.</p>"
        )
    yield from _consistency(probe)
    if thumbnails is not None and probe.most_changed:
        yield from _images(probe, thumbnails)


def _consistency(probe: ProbeResult) -> Iterator[str]:
    rows = "".join(
        f"<tr><td>{CHANGES[one.change]}</td><td>{one.start.unchanged:.2%}</td><td>{one.averaged.unchanged:.2%}</td>"
        f"<td>{one.start.probability_change:.4f}</td><td>{one.averaged.probability_change:.4f}</td></tr>"
        for one in probe.consistency
    )
    head = (
        "<tr><th>the same images</th><th>unchanged, start</th><th>unchanged, w̄</th><th>change of p, start</th>"
        "<th>change of p, w̄</th></tr>"
    )
    yield f"<div class='wide'><table>{head}{rows}</table></div>"


def _images(probe: ProbeResult, thumbnails: Path) -> Iterator[str]:
    yield "<h3>The images whose outputs changed the most</h3>"
    data = b64encode(thumbnails.read_bytes()).decode()
    # One picture in the page for all of them: each row shows its part.
    yield (
        f"<style>.probe {{ width: {THUMBNAIL}px; height: {THUMBNAIL}px; background: url(data:image/png;base64,{data}); "
        "image-rendering: pixelated }</style>"
    )
    rows = "".join(
        f"<tr><td><div class='probe' role='img' aria-label='image {one.index}' "
        f"style='background-position: {-THUMBNAIL * column}px 0'></div></td>"
        f"<td>{escape(one.name or str(one.index))}</td><td>{_answer(one.start)}</td><td>{_answer(one.averaged)}</td>"
        f"<td>{one.changed:.3f}</td></tr>"
        for column, one in enumerate(probe.most_changed)
    )
    head = "<tr><th>image</th><th>name</th><th>start</th><th>w̄</th><th>change</th></tr>"
    yield f"<div class='wide'><table>{head}{rows}</table></div>"


def _answer(answer: ProbeAnswer) -> str:
    return f"{escape(answer.label)} ({answer.probability:.1%})"
