"""The model card of a job's weights: what they were, what was done with them, and what that was measured to be worth.

Markdown, headed by the YAML that model hubs read. It is made of the job's spec and its result, so it says `worse` where
averaging lost. What the service cannot know (licence, intended use, where the images are from) is left to the user, by name.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt

import yaml

from wbar.measures import task_of
from wbar.recipe import Normalization, Recipe
from wbar.results import CALIBRATED, VERDICTS, Comparisons, JobResult
from wbar.scores import Score
from wbar.spec import JobSpec, StoredWeights

_FROZEN = ", with its frozen BatchNorm layers (as with `weights_backbone`)"
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")  # Markdown takes each for itself where a backslash stands before it


class _Dumper(yaml.SafeDumper):
    """Quotes what readers of YAML 1.2 take for a number and those of 1.1 do not, such as 1e5, and breaks of lines in names."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        odd = text[:1] in set("+-.0123456789") or any(sign in text for sign in "\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Dumper.add_representer(str, _Dumper.represent_text)


@dataclass(frozen=True)
class ModelCard:
    """The contents of a card.

    name: as the job's owner gave it.
    versions: of the programs that made the weights, by name; empty where they were not recorded.
    """

    job_id: str
    name: str | None
    spec: JobSpec
    result: JobResult
    versions: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the card."""
        return "\n".join([*self._head(), "", *self._body()])

    @property
    def _title(self) -> str:
        return self.name or self.job_id

    @property
    def _is_start(self) -> bool:
        selection = self.result.selection
        return selection is not None and selection.delivered == "start"

    @property
    def _is_hubs(self) -> bool:
        """Whether a folder that its own library loads is among the job's files."""
        absent = any(one.format == "huggingface" and one.reason is not None for one in self.result.formats)
        return "huggingface" in self.spec.formats and not absent

    @property
    def _delivered(self) -> Score:
        """The score of the weights in the file."""
        return self.result.metrics.start if self._is_start else self.result.metrics.averaged

    @property
    def _recipe(self) -> Recipe:
        """The recipe as it was used: with the normalization that the start was found to be trained with."""
        found = self.result.normalization
        return (
            self.spec.recipe
            if found is None
            else self.spec.recipe.model_copy(update={"normalize": found.normalization})
        )

    @property
    def _segments(self) -> bool:
        return self.spec.network.architecture.outputs == "pixels"

    @property
    def _detects(self) -> bool:
        return self.spec.network.architecture.outputs == "boxes"

    @property
    def _predicts(self) -> bool:
        return self.result.metrics.averaged.regression is not None

    @property
    def _has_attributes(self) -> bool:
        return self.result.metrics.averaged.attributes is not None

    @property
    def _task(self) -> str:
        if self._predicts:
            return "image-regression"
        tasks = {"image": "image-classification", "pixels": "image-segmentation", "boxes": "object-detection"}
        return tasks[self.spec.network.architecture.outputs]

    # The head.

    def _head(self) -> Iterator[str]:
        yield "---"
        yield "# license: yours to fill in; it depends on the start and on the images, of which only digests are known here"
        yield "# base_model: yours to fill in, if the start has a name on a hub"
        tags = [self._task, "weight-averaging", self.spec.method.type, self.spec.network.name, "wbar"]
        head = {
            "library_name": self.spec.network.architecture.library if self._is_hubs else "pytorch",
            # Hubs have no pipeline for numbers or attributes of images.
            **({} if self._predicts or self._has_attributes else {"pipeline_tag": self._task}),
            "tags": list(dict.fromkeys(tags)),
            "model-index": [{"name": self._title, "results": [self._index()]}],
        }
        yield yaml.dump(head, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120).rstrip()
        yield "---"

    def _index(self) -> dict[str, object]:
        score = self._delivered
        boxes, masks = score.boxes, score.masks
        metrics = {
            "accuracy": None if boxes or self._predicts else score.accuracy,
            **{f"accuracy of {name}": one.accuracy for name, one in (score.attributes or {}).items()},
            **self._errors(score),
            "coco_ap": boxes.ap if boxes else None,
            "coco_ap50": boxes.ap50 if boxes else None,
            "coco_ap75": boxes.ap75 if boxes else None,
            "coco_mask_ap": masks.ap if masks else None,
            "coco_mask_ap50": masks.ap50 if masks else None,
            ("mse_standardized" if self._predicts else "nll"): score.loss,
            "expected_calibration_error": score.ece,
            "mean_average_precision": score.map,
            "mean_iou": score.mean_iou,
        }
        return {
            "task": {"type": self._task, "name": self._task.replace("-", " ").title()},
            "dataset": {"type": "private", "name": self.spec.dataset.id, "split": "held-out, report split"},
            "metrics": [
                {"type": kind, "value": round(value, 6)} for kind, value in metrics.items() if value is not None
            ],
        }

    def _errors(self, score: Score) -> dict[str, float | None]:
        """Return R², and the root mean squared error and mean absolute error of each target."""
        if score.regression is None:
            return {}
        each = score.regression.by_target.items()
        rmse = {f"rmse of {name}": one.rmse for name, one in each}
        return {"r_squared": score.regression.r2} | rmse | {f"mae of {name}": one.mae for name, one in each}

    # The body.

    def _body(self) -> Iterator[str]:
        yield f"# {_plain(self._title)}"
        yield ""
        yield from self._what()
        yield "## How good it is"
        yield from self._comparisons()
        yield "## What was done"
        yield from self._done()
        yield "## How to load it"
        yield from self._loading()
        yield "## Limitations"
        yield from (f"- {line}" for line in self._limitations())

    def _what(self) -> Iterator[str]:
        network, result = self.spec.network, self.result
        what = f"A {network.name} with {network.num_classes} outputs"
        if self._is_start:
            yield (
                f"{what}: **the start, unchanged.** The average that was made of it was worse on the images that chose, so the "
                "guard gave the start back."
            )
        else:
            yield f"{what}, fine-tuned and averaged by wbar: the weights are {self._mean()}."
        yield ""
        yield f"**Verdict: {result.verdict}** – {VERDICTS[result.verdict]}."
        yield ""

    def _mean(self) -> str:
        chosen = self.result.selection.chosen if self.result.selection else None
        if chosen is not None:
            return chosen.in_words()
        if not self.spec.trains:
            return "the mean of several checkpoints (a soup)"
        if self.spec.method.type == "none":
            return "the last ones of a plain fine-tune"
        return "a mean of weights that the training visited"

    def _comparisons(self) -> Iterator[str]:
        result, metrics = self.result, self.result.metrics
        error = (
            ""
            if task_of(metrics.averaged) != "classification"
            else f" (one standard error of the accuracy of w̄: {self._error():.2%})"
        )
        yield f"On {result.held_out.report:,} held-out images{error}:"
        yield ""
        if self._segments:
            yield from self._of_pixels()
            return
        if self._detects:
            yield from self._of_boxes()
            return
        if self._predicts:
            yield from self._of_targets()
            return
        if self._has_attributes:
            yield from self._of_attributes()
            return
        yield "| | accuracy | NLL (nats) | NLL, calibrated | temperature | calibration error |"
        yield "| --- | ---: | ---: | ---: | ---: | ---: |"
        for name, score in metrics.named().items():
            cells = [
                f"**{Comparisons.label(name)}**" if name == "averaged" else Comparisons.label(name),
                f"{score.accuracy:.2%}", f"{score.loss:.4f}", _number(score.nll_calibrated, 4),
                _number(score.temperature, 2), _number(score.ece, 4),
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"
        yield ""
        yield CALIBRATED
        for line in result.selection_in_words():
            yield ""
            yield f"{_plain(line)}."
        yield ""

    def _of_pixels(self) -> Iterator[str]:
        yield "| | pixel accuracy | NLL (nats) | mean IoU |"
        yield "| --- | ---: | ---: | ---: |"
        for name, score in self.result.metrics.named().items():
            label = f"**{Comparisons.label(name)}**" if name == "averaged" else Comparisons.label(name)
            yield f"| {label} | {score.accuracy:.2%} | {score.loss:.4f} | {_number(score.mean_iou, 4)} |"
        yield ""
        for line in self.result.selection_in_words():
            yield f"{_plain(line)}."
            yield ""

    def _of_boxes(self) -> Iterator[str]:
        masked = self.result.metrics.averaged.masks is not None
        yield f"| | AP | AP50 | AP75 | {'mask AP | mask AP50 | ' if masked else ''}loss |"
        yield f"| --- | ---: | ---: | ---: | {'---: | ---: | ' if masked else ''}---: |"
        for name, score in self.result.metrics.named().items():
            label = f"**{Comparisons.label(name)}**" if name == "averaged" else Comparisons.label(name)
            boxes = score.boxes
            cells = [_number(value, 4) for value in ((boxes.ap, boxes.ap50, boxes.ap75) if boxes else (None,) * 3)]
            cells += [_number(getattr(score.masks, key, None), 4) for key in ("ap", "ap50")] if masked else []
            yield f"| {' | '.join([label, *cells, f'{score.loss:.4f}'])} |"
        yield ""
        yield "No ensemble of several networks' boxes is defined; instead of one stands the mean score of the snapshots."
        yield ""
        for line in self.result.selection_in_words():
            yield f"{_plain(line)}."
            yield ""

    def _of_targets(self) -> Iterator[str]:
        yield "| | target | R² | RMSE | MAE |"
        yield "| --- | --- | ---: | ---: | ---: |"
        for name, score in self.result.metrics.named().items():
            label = f"**{Comparisons.label(name)}**" if name == "averaged" else Comparisons.label(name)
            for target, one in score.regression.by_target.items() if score.regression else ():
                yield f"| {label} | {_plain(target)} | {_number(one.r2, 4)} | {one.rmse:.5g} | {one.mae:.5g} |"
        yield ""
        yield "Errors are in the targets' own units."
        yield ""
        for line in self.result.selection_in_words():
            yield f"{_plain(line)}."
            yield ""

    def _of_attributes(self) -> Iterator[str]:
        yield "| | attribute | images | accuracy | NLL (nats) |"
        yield "| --- | --- | ---: | ---: | ---: |"
        for name, score in self.result.metrics.named().items():
            label = f"**{Comparisons.label(name)}**" if name == "averaged" else Comparisons.label(name)
            yield f"| {label} | mean | | {score.accuracy:.2%} | {score.loss:.4f} |"
            for attribute, one in (score.attributes or {}).items():
                accuracy = "–" if one.accuracy is None else f"{one.accuracy:.2%}"
                yield f"| | {_plain(attribute)} | {one.images:,} | {accuracy} | {_number(one.loss, 4)} |"
        yield ""
        for line in self.result.selection_in_words():
            yield f"{_plain(line)}."
            yield ""

    def _error(self) -> float:
        accuracy = self.result.metrics.averaged.accuracy
        return sqrt(max(accuracy * (1 - accuracy), 0.0) / max(self.result.held_out.report, 1))

    def _done(self) -> Iterator[str]:
        spec = self.spec.model_copy(update={"recipe": self._recipe})
        yield "| | sha-256 |"
        yield "| --- | --- |"
        yield f"| start, {spec.start.id} | `{spec.start.sha256}` |"
        yield from _weights("ingredient", spec.ingredients)
        yield from _weights("teacher", spec.teachers)
        yield f"| dataset, {spec.dataset.id} | `{spec.dataset.sha256}` |"
        yield f"| these weights, safetensors | `{self.result.weights.sha256}` |"
        yield ""
        made = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        yield f"Job {self.job_id}, seed {spec.seed}{f', {made}' if made else ''}."
        yield "Method and recipe, with every `auto` resolved:"
        yield "```json"
        asked = spec.model_dump_json(indent=2, include={"method", "recipe", "seed", "classes"})
        yield asked.replace("`", "\\u0060")  # a name of a class may not end the block
        yield "```"
        yield ""

    def _loading(self) -> Iterator[str]:
        network, prefix = self.spec.network, self.spec.start.prefix
        named = f" (which begin with `{prefix}`)" if prefix else ""
        if self._is_hubs:
            yield from _loading_folder(network.architecture.library)
        if any(one.format == "pt2" and one.sha256 for one in self.result.formats):
            yield 'With its program, from the file of `?format=pt2`: `torch.export.load("averaged.pt2").module()`.'
            yield ""
        if network.config is None:
            yield f"Names{named}, shapes and dtypes are the start's, so code that loads the start loads this file:"
            yield "```python"
            yield "from safetensors.torch import load_file"
            yield ""
            yield f'model.load_state_dict(load_file("averaged.safetensors"))  # your {network.name}'
            yield "```"
        if self._detects:
            yield (
                "The network takes a list of images, (3, height, width) each, of any size, pixels in [0, 1]: it resizes and "
                f"normalizes them itself. {self._building()}."
            )
            yield ""
        yield "Without code of your own (`pip install 'wbar[worker]'`), with the normalization that the file's metadata has:"
        yield "```python"
        yield "from pathlib import Path"
        yield ""
        yield "from wbar_training.mlflow_model import AveragedModel"
        yield ""
        yield 'model = AveragedModel(Path("averaged.safetensors"))'
        found = "(N, classes, height, width)" if self._segments else "columns"
        found = "(N, most, 6), class, score, corners" if self._detects else found
        found += ", of each attribute its own softmax: model.attributes" if self._has_attributes else ""
        answers = "boxes" if self._detects else "predictions" if self._predicts else "logits"
        yield f"{answers} = model.predict(images)  # (N, channels, height, width), pixels in [0, 1]; {found}: model.classes"
        yield "```"
        yield from self._input()
        yield ""

    def _building(self) -> str:
        network = self.spec.network
        if network.architecture.library == "wbar":
            made = f'initialized(Network("{network.name}", {network.num_classes}))'
            return f"Build it with `{made}` (`wbar_training.networks.architectures`, `wbar.spec`)"
        return f"Build it with torchvision's defaults for its name{_FROZEN if network.frozen_norm else ''}"

    def _input(self) -> Iterator[str]:
        normalize, size = self._recipe.normalize, self._recipe.image_size
        side = f", {size[0]} × {size[1]} pixels" if isinstance(size, tuple) else ""
        side = ", of any size" if self._segments or self._detects else side
        if isinstance(normalize, Normalization):
            yield (
                f"The network takes (pixels − mean) / std of pixels in [0, 1], {self.spec.network.channels} channels{side}; "
                f"mean {_numbers(normalize.mean)}, std {_numbers(normalize.std)}."
            )

    def _limitations(self) -> Iterator[str]:
        result = self.result
        yield (
            f"Everything above was measured on {result.held_out.report:,} held-out images of one dataset. Nothing is known "
            "here about other images, other cameras, or groups within these."
        )
        yield "One run with one seed: another seed gives other numbers."
        if result.metrics.control is None:
            yield (
                "There is no control: how far a plain fine-tune of equal length would have come is not known, so the gain "
                "over the start is not the gain of averaging."
            )
        if result.verdict != "better":
            yield "On these images averaging did not give a network that is better than the start."
        if self._delivered.temperature is not None:
            yield "Confidence is not calibrated in the weights: divide the logits by the temperature in the table."
        yield "Licence, intended use and where the images are from are not known to the service: fill them in."


def _loading_folder(library: str) -> Iterator[str]:
    yield f"The weights as a folder (`?format=huggingface`, a zip) are loaded by {library} itself:"
    yield "```python"
    if library == "timm":
        yield 'model = timm.create_model("local-dir:averaged", pretrained=True)  # its label_names: model.pretrained_cfg'
    else:
        yield 'model = transformers.AutoModelForImageClassification.from_pretrained("averaged")'
        yield 'processor = transformers.AutoImageProcessor.from_pretrained("averaged")'
    yield "```"


def _weights(what: str, several: tuple[StoredWeights, ...]) -> Iterator[str]:
    yield from (f"| {what}, {one.id} | `{one.sha256}` |" for one in several)


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return _PUNCTUATION.sub(r"\\\1", text)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
