"""timm's networks: recognized from a table, described by what came with them, refused by name where they are not known."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import nn

from tests.training.test_timm_families import of_the_user
from wbar.catalog import ARCHITECTURES, TIMM, catalog_name
from wbar.errors import ArchitectureMismatch, CorruptFile, NothingMatches, UnknownArchitecture
from wbar.recipe import Recipe
from wbar.spec import Network, PretrainedConfig
from wbar_training.networks import timm_models, timm_table
from wbar_training.networks.architectures import build, initialized, load, shapes_of
from wbar_training.networks.fresh_layers import prepared
from wbar_training.networks.layers import scales
from wbar_training.networks.recognition import identify, recognize
from wbar_training.optim import decayed
from wbar_training.uploads.checkpoint_files import ValidCheckpoint, validate

timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'wbar[timm]'")

NAMES = (
    "vit_tiny_patch16_224", "vit_tiny_patch16_384", "deit_tiny_patch16_224", "mobilenetv3_small_050",
    "tf_mobilenetv3_small_100", "mobilenetv3_small_100", "resnetblur18", "timm/resnet18",
)  # fmt: skip
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 3,
    "model_args": {"img_size": 32, "num_classes": 3, "global_pool": "token"},
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "input_size": [3, 32, 32], "crop_pct": 0.9,
                       "interpolation": "bicubic"},
}  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    timm_table.write(folder, NAMES)
    return folder


def shapes(name: str, **options: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        module = timm.create_model(name, **options)
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("resnet18", "resnet18"),
        ("timm/resnet18", "timm/resnet18"),
        ("resnet18.a1_in1k", "timm/resnet18"),
        ("timm/vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224"),
        ("convnext_atto", "convnext_atto"),
    ],
)
def test_a_name_is_written_as_timm_or_its_hub_writes_it(written: str, name: str) -> None:
    assert catalog_name(written) == name


def test_every_network_with_a_classifier_has_one_name() -> None:
    names = timm_models.names()
    assert len(names) == len(set(names)) > 500
    assert not set(names) & set(ARCHITECTURES)
    assert {timm_models.timm_name(name) for name in names} <= set(timm.list_models())
    entry = timm_models.entry("vit_tiny_patch16_224")
    assert (entry.size, entry.fixed_size, entry.optimizer, entry.library) == (224, True, "adamw", "timm")


@pytest.mark.long
def test_networks_are_read_off_their_tensors(tables: Path) -> None:
    found = recognize(shapes("vit_tiny_patch16_224", num_classes=7, in_chans=1), None, tables)
    assert found.network == Network("vit_tiny_patch16_224", 7, channels=1)
    assert found.ambiguous_with == [], "the other size has other tensors, and deit_tiny is the same network"
    assert recognize(shapes("vit_tiny_patch16_224", num_classes=7, img_size=64), None, tables).network.image_size == 64


def test_what_the_tensors_cannot_tell_is_said(tables: Path) -> None:
    found = recognize(shapes("tf_mobilenetv3_small_100", num_classes=7), None, tables)
    assert (found.network.name, found.ambiguous_with) == ("mobilenetv3_small_100", ["tf_mobilenetv3_small_100"])
    said = recognize(shapes("tf_mobilenetv3_small_100", num_classes=7), "tf_mobilenetv3_small_100.in1k", tables)
    assert (said.network.name, said.ambiguous_with) == ("tf_mobilenetv3_small_100", [])


def test_torchvisions_network_stays_what_it_is_and_timms_is_asked_for(tables: Path) -> None:
    of_both = shapes("resnet18", num_classes=7)
    assert recognize(of_both, None, tables).network.name == "resnet18"
    assert identify("timm/resnet18", of_both, None, tables).name == "timm/resnet18"
    assert identify("resnetblur18", of_both, None, tables).name == "resnetblur18"
    with pytest.raises(ArchitectureMismatch, match="the tensors are not mobilenetv3_small_050's"):
        identify("mobilenetv3_small_050", of_both, None, tables)


def test_without_a_table_the_few_that_it_may_be_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "names", lambda: NAMES)
    assert (
        recognize(shapes("mobilenetv3_small_050", num_classes=7), None, tmp_path).network.name
        == "mobilenetv3_small_050"
    )
    assert timm_table.load(tmp_path) is None


def test_a_damaged_table_is_none(tmp_path: Path) -> None:
    timm_table.path_in(tmp_path).write_bytes(b'{"vit": [')
    assert timm_table.load(tmp_path) is None


@pytest.mark.long
def test_the_nearest_are_of_timm_too(tables: Path) -> None:
    changed = shapes("vit_tiny_patch16_224", num_classes=7) | {"blocks.0.strange": (3,)}
    with pytest.raises(
        UnknownArchitecture, match=r"The nearest: deit_tiny_patch16_224 .*1 unexpected: blocks.0.strange"
    ):
        recognize(changed, None, tables)
    with pytest.raises(UnknownArchitecture, match=r"similar names: .*vit_tiny_patch16_224"):
        identify("vit_tinny_patch16_224", changed, None, tables)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "../vit", "vit_tiny_patch16_224/../x"])
def test_only_names_of_the_registry_are_built(name: str) -> None:
    with pytest.raises(UnknownArchitecture):
        timm_models.module(Network(name, 10))


@cache
def weights() -> bytes:
    return save({key: value.contiguous() for key, value in of_the_user("vit_tiny_patch16_224").state_dict().items()})


def folder_of(config: Mapping[str, Any], kind: str, path: Path, extra: Mapping[str, bytes] | None = None) -> Path:
    """timm's folder in an archive, with other files beside."""
    files = {"m/model.safetensors": weights(), "m/config.json": json.dumps(config).encode(), "m/README.md": b"-"}
    files |= extra or {}
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
        return path
    with tarfile.open(path, f"w:{kind}") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def checked(path: Path, tables: Path) -> ValidCheckpoint:
    return validate(path, None, None, path.with_name("out"), tables=tables)


@pytest.mark.parametrize(
    "kind", ["zip", pytest.param("", marks=pytest.mark.long), pytest.param("gz", marks=pytest.mark.long)]
)
def test_timms_folder_says_what_its_images_were(kind: str, tables: Path, tmp_path: Path) -> None:
    valid = checked(folder_of(CONFIG, kind, tmp_path / "up"), tables)
    assert valid.format == ("zip" if kind == "zip" else "tar")
    assert (valid.network.name, valid.network.image_size) == (CONFIG["architecture"], 32)
    assert valid.pretrained == PretrainedConfig((0.5, 0.5, 0.5), (0.25, 0.5, 0.5), (32, 32), 0.9, "bicubic")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "up"]


def test_the_metadata_of_a_file_says_it_too(tables: Path, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in of_the_user("resnet18").state_dict().items()}
    metadata = {"architecture": "resnetblur18", "pretrained_cfg": json.dumps({"crop_pct": 0.95})}
    (tmp_path / "up").write_bytes(save(state, metadata))
    valid = checked(tmp_path / "up", tables)
    assert (valid.network.name, valid.ambiguous_with) == ("resnetblur18", None)
    assert valid.pretrained == PretrainedConfig(crop_ratio=0.95)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model_args": {"act_layer": "relu"}}, ArchitectureMismatch, "with 'act_layer', which makes another network"),
        ({"model_args": {"global_pool": "max"}}, ArchitectureMismatch, "'global_pool'"),
        ({"pretrained_cfg": {"std": [0.5, 0, 0.5]}}, CorruptFile, r"pretrained_cfg.std is '\[0.5, 0, 0.5\]'"),
        ({"pretrained_cfg": {"input_size": [3, 10**9, 32]}}, CorruptFile, "pretrained_cfg.input_size"),
        ({"pretrained_cfg": {"crop_pct": "1"}}, CorruptFile, "pretrained_cfg.crop_pct"),
    ],
)
def test_a_bad_configuration_is_refused_by_name(
    changes: dict[str, Any], error: type[Exception], words: str, tables: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        checked(folder_of(CONFIG | changes, "zip", tmp_path / "up"), tables)


@pytest.mark.long
def test_of_an_archive_only_the_two_files_are_read(tables: Path, tmp_path: Path) -> None:
    up = folder_of(CONFIG, "zip", tmp_path / "up", {"m/model.py": b"raise SystemExit", "m/deep/config.json": b"{"})
    assert checked(up, tables).network.name == CONFIG["architecture"]
    with pytest.raises(
        CorruptFile, match=r"several networks' weights, .m/model.safetensors. and .n/model.safetensors."
    ):
        checked(folder_of(CONFIG, "zip", tmp_path / "two", {"n/model.safetensors": b"-"}), tables)


def test_stochastic_depth_is_timms_or_torchvisions() -> None:
    network, recipe = Network("vit_tiny_patch16_224", 3, image_size=32), Recipe(drop_path=0.3)
    model = prepared(network, initialized(network).state_dict(), recipe, 0)
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    assert rates == sorted(rates)
    with pytest.raises(NothingMatches, match="vgg11 has no stochastic depth"):
        build(Network("timm/vgg11", 3), 0.1)
    with pytest.raises(NothingMatches, match="resnet20 has no stochastic depth"):
        prepared(Network("resnet20", 3), initialized(Network("resnet20", 3)).state_dict(), recipe, 0)


def test_rates_fall_with_the_layers_that_timm_says() -> None:
    scale = scales(build(Network("vit_tiny_patch16_224", 3, image_size=32)), 0.5)
    assert scale["head.weight"] == 1
    assert scale["blocks.11.attn.qkv.weight"] == 0.5
    assert scale["blocks.0.attn.qkv.weight"] == 0.5**12
    assert scale["pos_embed"] == scale["patch_embed.proj.weight"] == 0.5**13


def test_weight_decay_leaves_alone_what_the_network_lists() -> None:
    swin = build(Network("swinv2_tiny_window8_256", 3))
    assert any("cpb_mlp" in name for name, _ in swin.named_parameters())
    assert not any("cpb_mlp" in name or "logit_scale" in name for name in decayed(swin))
    vit = decayed(build(Network("vit_tiny_patch16_224", 3)))
    assert {"cls_token", "pos_embed"}.isdisjoint(vit)
    assert "blocks.0.attn.qkv.weight" in vit


@pytest.mark.long
def test_constants_that_no_file_has_are_computed() -> None:
    network = Network("eva02_tiny_patch14_224", 3)
    torch.manual_seed(0)
    user = timm.create_model("eva02_tiny_patch14_224", num_classes=3).eval()
    ours, _ = load(network, user.state_dict())
    assert not any(tensor.is_meta for tensor in [*ours.buffers(), *ours.parameters()])
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(image), user(image))


class Tied(nn.Module):
    """Two layers that are one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.fc.weight = self.first.weight


def test_tied_weights_stay_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wbar_training.networks.architectures.build", lambda *_: Tied())
    loaded, _ = load(Network("tied", 4), Tied().state_dict())
    assert loaded.get_parameter("fc.weight") is loaded.get_parameter("first.weight")
    assert len(list(loaded.parameters())) == 1


def test_shapes_need_no_memory_and_no_file() -> None:
    assert shapes_of(Network(TIMM + "resnet18", 10))["fc.weight"] == (10, 512)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tresnet_m", {"in_chans": 1}),  # images are folded first
        ("mobileone_s0", {"in_chans": 1}),  # they enter at several layers
        ("crossvit_9_240", {"in_chans": 1}),
        ("hiera_tiny_224", {"img_size": 256}),  # positions in tables of other forms
        ("pit_ti_224", {"img_size": 256}),
        ("beit_base_patch16_224", {"img_size": 384}),
    ],
)
def test_channels_and_sizes_that_no_single_tensor_says(name: str, options: dict[str, int]) -> None:
    with torch.device("meta"):
        made = timm.create_model(name, num_classes=7, **options)
    shapes = {key: tuple(tensor.shape) for key, tensor in made.state_dict().items()}
    found = identify(name, shapes)
    assert (found.num_classes, found.channels) == (7, options.get("in_chans", 3))
    assert found.image_size == options.get("img_size")
    assert shapes_of(found) == shapes
