"""The model card: a head that hubs read, the table as it is, and words that also hold where averaging lost."""

import ast
import json
import re
from typing import Any

import pytest
import yaml

from tests.store.rows import SCORE, result, spec
from wbar.card import ModelCard
from wbar.choices import Candidate, NormalizationProbe, Selection
from wbar.recipe import Normalization
from wbar.results import Comparisons, JobResult
from wbar.spec import Network


def card(name: str | None = "evening", found: JobResult | None = None, **changes: Any) -> str:
    return ModelCard("job_1", name, spec(**changes), found or result(), {"wbar": "0.8.0", "torch": "2.12"}).markdown()


def head_of(text: str) -> dict[str, Any]:
    _, head, _ = text.split("---\n", 2)
    head_: dict[str, Any] = yaml.safe_load(head)
    return head_


def test_the_head_is_what_hubs_read() -> None:
    head = head_of(card())
    assert head["library_name"] == "pytorch"
    assert head["pipeline_tag"] == "image-classification"
    assert {"weight-averaging", "cyclic_swa", "resnet20"} <= set(head["tags"])
    (index,) = head["model-index"]
    assert index["name"] == "evening"
    assert index["results"][0]["metrics"][:2] == [{"type": "accuracy", "value": 0.5}, {"type": "nll", "value": 0.7}]
    assert "license" not in head  # the user's
    assert "# license:" in card()


def test_huggingface_hub_reads_it() -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card()).data
    assert data.model_name == "evening"
    assert [one.metric_value for one in data.eval_results] == [0.5, 0.7, 0.1]


def test_it_says_what_was_done_with_what() -> None:
    text = card()
    for digest in ("a" * 64, "c" * 64, "e" * 64):  # start, dataset, weights
        assert f"`{digest}`" in text
    assert "Job job_1, seed 0, wbar 0.8.0, torch 2.12." in text
    (asked,) = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert json.loads(asked)["method"]["type"] == "cyclic_swa"


def test_every_comparison_is_in_the_table() -> None:
    metrics = result().metrics.model_copy(update={"control": SCORE.model_copy(update={"accuracy": 0.625})})
    text = card(found=result().model_copy(update={"metrics": metrics}))
    for name in metrics.named():
        assert Comparisons.label(name) in text
    assert "| control (cosine, equal epochs) | 62.50% | 0.7000 |" in text
    assert "There is no control" not in text
    assert "There is no control" in card()


def test_a_loss_is_called_one() -> None:
    text = card(found=result().model_copy(update={"verdict": "worse"}))
    assert "**Verdict: worse** – the average is worse than the start, by more than two standard errors" in text
    assert "averaging did not give a network that is better than the start" in text


def test_the_start_that_the_guard_gave_back_is_called_the_start() -> None:
    metrics = result().metrics.model_copy(update={"start": SCORE.model_copy(update={"accuracy": 0.75})})
    selection = Selection(delivered="start", chosen=Candidate(first=1, last=2, loss=0.1), of=3)
    text = card(found=result().model_copy(update={"metrics": metrics, "selection": selection, "verdict": "worse"}))
    assert "**the start, unchanged.**" in text
    assert head_of(text)["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75  # of the file, not of w̄
    chosen = selection.model_copy(update={"delivered": "averaged"})
    assert "the weights are the mean of segments 1 to 2." in card(
        found=result().model_copy(update={"selection": chosen})
    )


def test_the_normalization_is_the_one_that_was_found() -> None:
    found = Normalization(mean=[0.5] * 3, std=[0.25] * 3)
    probe = NormalizationProbe(chosen="half", losses={"half": 0.1}, normalization=found)
    text = card(found=result().model_copy(update={"normalization": probe}))
    assert "mean 0.5, 0.5, 0.5, std 0.25, 0.25, 0.25." in text


@pytest.mark.parametrize("name", ["# x\u2028| <script>`[a](b)", "---", "a: b # c", "'\"{}*_", "1e5"])
def test_a_name_is_shown_as_it_is(name: str) -> None:
    text = card(name)
    assert head_of(text)["model-index"][0]["name"] == name
    (title,) = [line for line in text.split("\n") if line.startswith("# ") and "yours to fill in" not in line]
    assert re.sub(r"\\(.)", r"\1", title) == f"# {name}"
    assert not re.search(r"(?<!\\)[<|`\[*_]", title)


def test_a_class_cannot_end_the_block() -> None:
    text = card(classes=("a```\n# x", "b"), network=Network("resnet20", 2))
    (asked,) = re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert json.loads(asked)["classes"] == ["a```\n# x", "b"]


def test_its_python_is_python() -> None:
    found = re.findall(r"```python\n(.*?)```", card(), re.DOTALL)
    assert len(found) == 2
    for code in found:
        ast.parse(code)


@pytest.mark.parametrize("name", ["1e5", "0o17", ".5e3", "-3"])
def test_a_name_that_looks_like_a_number_is_a_text_to_every_reader(name: str) -> None:
    assert f'name: "{name}"' in card(name)
