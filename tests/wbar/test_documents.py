"""What is stored is what versions before read, as long as nothing new is asked for; what a start came with fills the recipe."""

from dataclasses import replace

import pytest

from tests.store.rows import spec, stored
from wbar.catalog import Architecture
from wbar.checkpoints import CheckpointFacts
from wbar.datasets import DatasetFacts, ImageShape
from wbar.job_request import JobOptions
from wbar.recipe import NEW_OPTIONS, Normalization, Recipe
from wbar.resolve import resolve_job
from wbar.spec import JobSpec, Network, PretrainedConfig

ENTRY = Architecture("vit_x", "vit", 224, 32, fixed_size=False, optimizer="adamw", peak_lr=1e-4, library="timm")
CAME_WITH = PretrainedConfig((0.5,) * 3, (0.25,) * 3, (64, 64), 0.9, "bicubic")
FACTS = DatasetFacts(
    task="classification", classes=tuple("0123456789"), train_images=100, shape=ImageShape(channels=3, height=32, width=32),
    many_sizes=False, mean=(0.1,) * 3, std=(0.2,) * 3, source=None,
)  # fmt: skip


def test_a_document_of_usual_options_has_nothing_new() -> None:
    document = spec().document()
    assert not set(NEW_OPTIONS) & document["recipe"].keys()
    assert "entry" not in document["network"]
    assert "pretrained" not in document["start"]
    assert JobSpec.model_validate(document) == spec()
    assert spec(recipe=Recipe(layer_decay=0.5)).run_digest() != spec().run_digest()


def test_what_is_new_is_kept() -> None:
    recipe = Recipe(
        layer_decay=0.75, head_epochs=1, drop_path=0.1, crop_ratio=0.9, interpolation="bicubic", head_lr=0.1
    )
    made = spec(recipe=recipe, network=replace(Network("vit_x", 10), entry=ENTRY))
    again = JobSpec.model_validate(made.document())
    assert (again.recipe, again.network.entry) == (recipe, ENTRY)
    assert again.network.architecture.optimizer == "adamw"
    assert again.network == Network("vit_x", 10), "the entry says nothing about which network it is"


def test_facts_are_stored_the_same_way() -> None:
    plain = CheckpointFacts("safetensors", 1, 1, Network("resnet20", 10), "detected", "", None)
    assert plain.document().keys() == {
        "format",
        "parameters",
        "tensors",
        "network",
        "source",
        "prefix",
        "ambiguous_with",
    }
    assert replace(plain, pretrained=CAME_WITH).document()["pretrained"]["crop_ratio"] == 0.9


def resolved(recipe: Recipe, pretrained: PretrainedConfig | None) -> JobSpec:
    start = stored().model_copy(update={"pretrained": pretrained})
    return resolve_job(JobOptions(recipe=recipe), start, spec().dataset, FACTS, False)


def test_what_the_start_came_with_is_the_default() -> None:
    made = resolved(Recipe(), CAME_WITH)
    assert made.recipe.normalize == Normalization(mean=[0.5] * 3, std=[0.25] * 3)
    assert (made.recipe.image_size, made.recipe.crop_ratio, made.recipe.interpolation) == ((64, 64), 0.9, "bicubic")
    assert not made.find_normalization
    assert resolved(Recipe(), None).recipe.image_size == (32, 32)
    assert resolved(Recipe(), None).find_normalization


def test_what_is_asked_for_wins() -> None:
    asked = Recipe(normalize="imagenet", image_size=32, crop_ratio=0.875, interpolation="bilinear")
    recipe = resolved(asked, CAME_WITH).recipe
    assert (recipe.image_size, recipe.crop_ratio, recipe.interpolation) == ((32, 32), 0.875, "bilinear")
    assert recipe.normalize.mean[0] == 0.485  # type: ignore[union-attr]


def test_a_classifier_that_is_trained_first_has_a_rate() -> None:
    made = resolved(Recipe(head_epochs=1), None)
    assert made.recipe.head_lr == pytest.approx(10 * made.method.high.lr)  # type: ignore[union-attr,operator]
    assert resolved(Recipe(head_epochs=1, head_lr=0.5), None).recipe.head_lr == 0.5
    with pytest.raises(ValueError, match="head_lr is the rate of head_epochs, which is 0"):
        Recipe(head_lr=0.5)
