"""`auto` is a static function of the catalog, the checkpoint and the dataset; what cannot fit is refused with both values."""

from dataclasses import replace
from typing import Any, Literal

import pytest

from wbar.datasets import DatasetFacts, ImageShape
from wbar.errors import ChannelsMismatch, ClassesMismatch, ImageSizeUnsupported
from wbar.job_request import JobOptions
from wbar.method import AutoMethod, CyclicSwa, HighPhase, Plain, Soup, Swa, Training
from wbar.recipe import IMAGENET, Normalization, Optimizer, Recipe
from wbar.recipe_defaults import resolve_recipe
from wbar.resolve import resolve_classes, resolve_job, resolve_method
from wbar.spec import Network, StoredDataset, StoredWeights

GREY = Normalization(mean=[0.3], std=[0.4])
COLOUR = Normalization(mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2])


def network(name: str = "resnet20", channels: int = 3, image_size: int | None = None) -> Network:
    return Network(name, 10, channels, image_size)


def facts(
    images: int = 50_000,
    size: int = 32,
    channels: int = 3,
    source: str | None = None,
    statistics: Normalization = COLOUR,
) -> DatasetFacts:
    return DatasetFacts(
        task="classification", classes=tuple("abcdefghij"), train_images=images,
        shape=ImageShape(channels=channels, height=size, width=size), many_sizes=False, mean=tuple(statistics.mean),
        std=tuple(statistics.std), source=source,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "images", "optimizer", "decay", "batch", "high", "low"),
    [
        ("resnet20", 50_000, "sgd", 5e-4, 128, 0.05, 0.005),
        ("resnet20", 1438, "sgd", 5e-4, 64, 0.025, 0.0025),
        ("resnet20", 60, "sgd", 5e-4, 8, 0.003125, 0.0003125),
        ("cifar_vgg16_bn", 50_000, "sgd", 5e-4, 128, 0.025, 0.0025),
        ("resnet50", 50_000, "sgd", 5e-4, 128, 0.025, 0.0025),
        ("convnext_tiny", 50_000, "adamw", 0.05, 128, 6.25e-5, 6.25e-6),
    ],
)
def test_the_defaults_by_hand(
    name: str, images: int, optimizer: str, decay: float, batch: int, high: float, low: float
) -> None:
    recipe = resolve_recipe(Recipe(), network(name), facts(images), gpu=False)
    method = resolve_method(CyclicSwa(), recipe, network(name))
    assert (recipe.optimizer.name, recipe.optimizer.weight_decay, recipe.batch_size) == (optimizer, decay, batch)
    assert (method.high.lr, method.low.lr, method.pull) == (pytest.approx(high), pytest.approx(low), 5e-4)
    assert (method.cycles, method.high.epochs, method.low.epochs) == (6, 1, 1)
    assert recipe.image_size == (32, 32)
    assert recipe.normalize == COLOUR
    assert "auto" not in recipe.model_dump_json() + method.model_dump_json()


@pytest.mark.parametrize(
    ("name", "optimizer", "peak"),
    [
        ("resnet20", "auto", 0.005),  # 0.1 with the statistics of batches
        ("resnet50", "auto", 0.005),
        ("lraspp_mobilenet_v3_large", "auto", 0.08),
        ("vgg16", "auto", 0.005),  # has no BatchNorm, and this rate anyway
        ("ssd300_vgg16", "auto", 0.008),  # a detector's published rate is for kept statistics
        ("resnet20", "adamw", 1.25e-4),
        ("convnext_tiny", "auto", 1.25e-4),
    ],
)
def test_kept_statistics_have_at_most_the_rate_of_networks_without_normalization(
    name: str, optimizer: Literal["auto", "adamw"], peak: float
) -> None:
    asked = Recipe(batch_norm="frozen", optimizer=Optimizer(name=optimizer), batch_size=64, image_size=224)
    recipe = resolve_recipe(asked, network(name), facts(), gpu=False)
    peak /= 2  # of 64 images

    def resolved(method: Training | Soup) -> Any:
        return resolve_method(method, recipe, network(name))

    for method in (Plain(type="none"), AutoMethod(type="auto")):
        found = resolved(method)
        assert found.lr == found.control_lr == pytest.approx(peak)
    swa = resolved(Swa(type="swa"))
    assert (swa.lr, swa.anneal_from) == (pytest.approx(peak / 2), pytest.approx(peak))
    cyclic = resolved(CyclicSwa())
    assert (cyclic.high.lr, cyclic.low.lr) == (pytest.approx(peak / 2), pytest.approx(peak / 20))
    given = resolved(CyclicSwa(high=HighPhase(lr=0.2)))
    assert (given.high.lr, given.control_lr) == (0.2, pytest.approx(peak))


def test_annealing_never_begins_below_the_rate_that_it_goes_to() -> None:
    recipe = resolve_recipe(Recipe(batch_norm="frozen"), network(), facts(), gpu=False)
    method = resolve_method(Swa(type="swa", lr=0.02, anneal_epochs=1), recipe, network())
    assert isinstance(method, Swa)
    assert method.anneal_from == 0.02


def test_what_is_given_stays() -> None:
    asked = Recipe(optimizer=Optimizer(name="adamw", weight_decay=0.1), batch_size=32, augment="none", precision="bfloat16",
                   normalize="imagenet", image_size=48)  # fmt: skip
    recipe = resolve_recipe(asked, network(), facts(), gpu=False)
    assert recipe.optimizer == asked.optimizer
    assert (recipe.batch_size, recipe.augment, recipe.precision, recipe.image_size) == (
        32,
        "none",
        "bfloat16",
        (48, 48),
    )
    assert recipe.normalize == IMAGENET
    method = resolve_method(CyclicSwa(high=HighPhase(lr=0.3, epochs=2), pull=0), recipe, network())
    assert (method.high.lr, method.high.epochs, method.low.lr, method.pull) == (0.3, 2, pytest.approx(0.03), 0)


def test_precision_and_flips_depend_on_what_is_there() -> None:
    assert resolve_recipe(Recipe(), network(), facts(), gpu=True).precision == "bfloat16"
    assert resolve_recipe(Recipe(), network(), facts(), gpu=False).augment == "pad_crop_flip"
    digits = facts(channels=1, source="builtin:digits", statistics=GREY)
    assert resolve_recipe(Recipe(), network(), digits, gpu=False).augment == "pad_crop"


def test_grey_images_are_repeated_to_the_networks_channels() -> None:
    recipe = resolve_recipe(Recipe(), network(), facts(channels=1, statistics=GREY), gpu=False)
    assert recipe.normalize == Normalization(mean=[0.3] * 3, std=[0.4] * 3)
    one = resolve_recipe(Recipe(), network(channels=1), facts(channels=1, statistics=GREY), gpu=False)
    assert one.normalize == GREY
    with pytest.raises(ChannelsMismatch, match="3 channels and the checkpoint's network takes 1"):
        resolve_recipe(Recipe(), network(channels=1), facts(channels=3), gpu=False)


def test_image_sizes_a_network_does_not_take() -> None:
    with pytest.raises(ImageSizeUnsupported, match="at least 63x63 pixels and would get 32x32"):
        resolve_recipe(Recipe(), network("alexnet"), facts(), gpu=False)
    vit = network("vit_b_16", image_size=224)
    assert resolve_recipe(Recipe(), vit, facts(), gpu=False).image_size == (224, 224)
    with pytest.raises(ImageSizeUnsupported, match="trained at 224x224 and takes no other size, not 64x64"):
        resolve_recipe(Recipe(image_size=64), vit, facts(), gpu=False)


def test_class_orders() -> None:
    assert resolve_classes(None, network(), facts()) is None
    order = list("jihgfedcba")
    assert resolve_classes(order, network(), facts()) == order
    small = Network("resnet20", 5)
    with pytest.raises(ClassesMismatch, match="10 classes and the checkpoint's network has 5 outputs"):
        resolve_classes(None, small, facts())
    with pytest.raises(ClassesMismatch, match="9 different classes"):
        resolve_classes(list("aabcdefghi"), network(), facts())
    with pytest.raises(ClassesMismatch, match=r"does not name \['j'\]"):
        resolve_classes(list("abcdefghiz"), network(), facts())


def test_one_output_tells_two_classes_apart_and_has_one_label_of_several() -> None:
    one, two = Network("resnet20", 1), replace(facts(), classes=("no", "yes"))
    assert resolve_classes(None, one, two) is None
    with pytest.raises(ClassesMismatch, match=r"labels 1\.\.1 would have none"):
        resolve_classes(None, one, replace(two, task="multilabel"))


@pytest.mark.parametrize(("rate", "head"), [("auto", 0.5), (0.02, 0.2)])
def test_a_classifier_that_is_trained_by_itself_has_the_rate_of_moving_statistics(rate: Any, head: float) -> None:
    jobs = [
        resolve_job(
            JobOptions(
                method=Plain(type="none", lr=rate),
                recipe=Recipe(batch_norm=kind, batch_size=64, head="reset", head_epochs=1),
            ),
            StoredWeights(id="start", sha256="", blob="start", prefix="", network=network()),
            StoredDataset(id="data", sha256="", blob="data"),
            facts(),
            gpu=False,
        )
        for kind in ("frozen", "track")
    ]
    assert [job.recipe.head_lr for job in jobs] == [pytest.approx(head), pytest.approx(head)]
