"""Folders of transformers that were made to deceive, to fill a disk or to take hours: a sentence for each, nothing is left."""

import io
import json
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from tests.training.test_transformers_families import CLASSES, folder_of
from wbar.errors import ArchitectureMismatch, ContentTooLarge, CorruptFile, Rejected, UnknownArchitecture, UnsafePath
from wbar_training.uploads.checkpoint_files import ValidCheckpoint, validate
from wbar_training.uploads.limits import UploadLimits

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'wbar[transformers]'"
)
CONFIG, IMAGES, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Files = Sequence[tuple[str, bytes]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    """The files of a good folder."""
    folder = folder_of("vit", tmp_path_factory.mktemp("folder") / "good")
    return {name: (folder / name).read_bytes() for name in (CONFIG, IMAGES, WEIGHTS)}


def as_zip(folder: Path, files: Files, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "upload", "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return folder / "upload"


def as_tar(folder: Path, files: Sequence[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    with tarfile.open(folder / "upload", "w:gz") as archive:
        for one in files:
            if isinstance(one, tarfile.TarInfo):
                archive.addfile(one)
            else:
                entry = tarfile.TarInfo(one[0])
                entry.size = len(one[1])
                archive.addfile(entry, io.BytesIO(one[1]))
    return folder / "upload"


def checked(path: Path, limits: UploadLimits | None = None) -> ValidCheckpoint:
    return validate(path, None, None, path.with_name("out"), limits)


def refused(path: Path, error: type[Rejected], words: str, limits: UploadLimits | None = None) -> None:
    with pytest.raises(error, match=words):
        checked(path, limits)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def with_config(whole: Mapping[str, bytes], **changes: Any) -> Files:
    return [*(whole | {CONFIG: json.dumps(json.loads(whole[CONFIG]) | changes).encode()}).items()]


def with_images(whole: Mapping[str, bytes], **changes: Any) -> Files:
    return [*(whole | {IMAGES: json.dumps(json.loads(whole[IMAGES]) | changes).encode()}).items()]


def pickled(weights: bytes) -> bytes:
    from safetensors.torch import load

    out = io.BytesIO()
    torch.save(load(weights), out)
    return out.getvalue()


# config.json


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"hidden_size": 10**7 + 1}, ArchitectureMismatch, "a number of 24 bits: up to 10,000,000"),
        ({"num_hidden_layers": 10**400}, ArchitectureMismatch, "a number of 1329 bits"),
        ({"more": {"one": [{"two": -(10**9)}]}}, ArchitectureMismatch, "a number of 30 bits"),
        ({"num_labels": 10**6 + 1, "id2label": None}, ArchitectureMismatch, "'1000001' is no number of classes"),
        ({"num_labels": 3.0, "id2label": None}, ArchitectureMismatch, r"'3\.0' is no number of classes"),
        ({"num_labels": True, "id2label": None}, ArchitectureMismatch, "'True' is no number of classes"),
        ({"id2label": {}}, ArchitectureMismatch, "'0' is no number of classes"),
        ({"id2label": {str(n): "x" * 1001 for n in range(CLASSES)}}, CorruptFile, "no name of output 0"),
        ({"id2label": {str(n): f"c{n}" for n in range(120_000)}}, CorruptFile, "more than 100000 parts"),
        ({"id2label": {"0": "a\x1b[2J", "1": "b", "2": "c"}}, CorruptFile, "no name of output 0"),
        ({"num_hidden_layers": 1200}, ArchitectureMismatch, "more than 4000 parameters' tensors"),
        ({"auto_map": [[[[["evil"]]]]]}, UnknownArchitecture, "names code to run"),
        ({"model_type": ["vit"]}, UnknownArchitecture, "which transformers .* does not know"),
        ({"model_type": "v" * 10**6}, UnknownArchitecture, r"\(1000000 characters\), which transformers"),
        ({"architectures": [{}]}, UnknownArchitecture, "is no image classifier"),
        ({"quantization_config": "gptq"}, ArchitectureMismatch, "the weights are quantized"),
        ({"to_dict": 5}, ArchitectureMismatch, "none of ViTForImageClassification"),
        ({"attribute_map": {"hidden_size": "x"}}, ArchitectureMismatch, "builds no ViTForImageClassification"),
        ({"patch_size": 0}, ArchitectureMismatch, "builds no ViTForImageClassification that runs"),
        ({"image_size": {"height": 32, "width": 32}}, ArchitectureMismatch, "none of ViTForImageClassification"),
        ({"image_size": 4097}, ArchitectureMismatch, "image_size is '4097'"),
    ],
)
def test_configurations(
    changes: dict[str, Any], error: type[Rejected], words: str, whole: Mapping[str, bytes], tmp_path: Path
) -> None:
    refused(as_zip(tmp_path, with_config(whole, **changes)), error, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "vit", "more": ' + "[" * 25 + "]" * 25 + "}", "config.json has more than 20 levels"),
        ('{"model_type": "vit", "more": ' + "[" * 5000 + "]" * 5000 + "}", "is not JSON"),
        ('{"model_type": "vit", "more": 1e999}', "a number that is not finite: inf"),
        ('{"model_type": "vit", "more": NaN}', "NaN is no number of JSON"),
        ('{"model_type": "vit", "more": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"model_type": "vit", "model_type": "bert"}', "a name occurs twice"),
        ('{"model_type": "vit", "more": "\\ud800"}', "surrogates not allowed"),
        ("[]", "is a JSON list, not an object"),
        (" " * (8 * 2**20 + 1), "more than the limit of 8388608"),
    ],
)
def test_configurations_that_are_no_plain_json(
    text: str, words: str, whole: Mapping[str, bytes], tmp_path: Path
) -> None:
    refused(as_zip(tmp_path, [*(whole | {CONFIG: text.encode()}).items()]), Rejected, words)


def test_a_network_without_bounds_is_compared_and_never_made(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    """Its position embeddings alone have 671 terabytes."""
    files = with_config(whole, hidden_size=10**7, intermediate_size=10**7, patch_size=1, image_size=4096)
    begun = time.monotonic()
    refused(as_zip(tmp_path, files), ArchitectureMismatch, r"39 of another shape: classifier.weight: \(3, 32\) in the")
    assert time.monotonic() - begun < 60


def test_what_the_library_would_leave_out_is_asked_for_once(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    tensors = {f"more.{n}": torch.zeros(1) for n in range(2000)}
    save_file(load_file_of(whole, tmp_path) | tensors, tmp_path / "more")
    weights = (tmp_path / "more").read_bytes()
    (tmp_path / "more").unlink()
    begun = time.monotonic()
    refused(as_zip(tmp_path, [*(whole | {WEIGHTS: weights}).items()]), ArchitectureMismatch, "2000 unexpected: more.0")
    assert time.monotonic() - begun < 60


def load_file_of(whole: Mapping[str, bytes], folder: Path) -> dict[str, torch.Tensor]:
    (folder / "plain").write_bytes(whole[WEIGHTS])
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "plain").items()}
    (folder / "plain").unlink()
    return tensors


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": {"a": [1]}, "dtype": "__import__('os')"},
        {"_commit_hash": "../../x", "_name_or_path": "/etc", "name_or_path": "../../etc"},
        {"_attn_implementation": "evil/kernel", "attn_implementation": "evil/kernel"},
        {"__class__": "x", "forward": 1, "gradient_checkpointing": True},
    ],
)
def test_what_says_nothing_about_the_network_changes_nothing(
    changes: dict[str, Any], whole: Mapping[str, bytes], tmp_path: Path
) -> None:
    assert checked(as_zip(tmp_path, with_config(whole, **changes))).network is not None


# preprocessor_config.json


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rescale_factor": 5e-324}, r"with rescale_factor 4\.9\S+ pixels in \[0, 1\] have the mean \[inf"),
        ({"rescale_factor": 1e-300, "image_mean": [1e5] * 3}, r"with rescale_factor 1e-300 .*, which they cannot have"),
        ({"rescale_factor": 0}, "rescale_factor is '0'"),
        ({"image_std": [5e-324] * 3}, "image_std is"),
        ({"image_std": "0.5"}, "image_std is"),
        ({"image_mean": [0.5] * 10**4}, "image_mean is"),
        ({"size": {"height": True, "width": True}}, "size is"),
        ({"size": [32, 32]}, "size is"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": -1}, "crop_pct is '-1'"),
    ],
)
def test_numbers_of_images(changes: dict[str, Any], words: str, whole: Mapping[str, bytes], tmp_path: Path) -> None:
    refused(as_zip(tmp_path, with_images(whole, **changes)), CorruptFile, f"preprocessor_config.json: {words}")


@pytest.mark.parametrize(
    "changes",
    [
        *({"resample": value} for value in ([1], {}, True, "3", 10**30)),
        {"image_processor_type": 5},
        {"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.Processor"}},
        {"do_center_crop": {"a": 1}, "crop_size": {}},
    ],
)
def test_processors_are_not_looked_for(changes: dict[str, Any], whole: Mapping[str, bytes], tmp_path: Path) -> None:
    pretrained = checked(as_zip(tmp_path, with_images(whole, **changes))).pretrained
    assert pretrained is not None
    assert pretrained.mean == (0.5, 0.4, 0.3)
    assert pretrained.interpolation == (None if "resample" in changes else "bicubic")


# The archive.


def many(whole: Mapping[str, bytes], name: str, count: int) -> Files:
    return [*((f"d{n}/{name}", b" " * 1000) for n in range(count)), *whole.items()]


ZIPS: dict[str, tuple[Callable[[Mapping[str, bytes]], Files], type[Rejected], str]] = {
    "a name in another case": (
        lambda whole: [*whole.items(), ("CONFIG.JSON", b"{}")], CorruptFile, "in the archive twice",
    ),
    "outside": (lambda whole: [*whole.items(), ("../evil", b"x")], CorruptFile, "'../evil' points outside"),
    "from the root": (
        lambda whole: [(f"/{name}", content) for name, content in whole.items()], CorruptFile, "points outside",
    ),
    "apart": (
        lambda whole: [(f"a/{CONFIG}", whole[CONFIG]), (WEIGHTS, whole[WEIGHTS])],
        CorruptFile,
        "'a/config.json' is not beside 'model.safetensors'",
    ),
    "two networks": (
        lambda whole: [(f"a/{WEIGHTS}", whole[WEIGHTS]), (f"b/{WEIGHTS}", whole[WEIGHTS])],
        CorruptFile,
        "several networks' weights, 'a/model.safetensors' and 'b/model.safetensors'",
    ),
    "parts of many networks": (lambda whole: many(whole, FIRST, 50), CorruptFile, "several networks' weights"),
    "many configurations": (lambda whole: many(whole, CONFIG, 1500), CorruptFile, "more than 1000 configurations"),
    "pickled weights": (
        lambda whole: [(WEIGHTS, pickled(whole[WEIGHTS]))], CorruptFile, "model.safetensors is no safetensors file",
    ),
    "pickled weights and a configuration": (
        lambda whole: [*(whole | {WEIGHTS: pickled(whole[WEIGHTS])}).items()], CorruptFile, "is no safetensors file",
    ),
    "a header that lies": (
        lambda whole: [*(whole | {WEIGHTS: (2**60).to_bytes(8, "little") + whole[WEIGHTS][8:]}).items()],
        ContentTooLarge,
        "claims 1152921504606846976 bytes",
    ),
    "cut off": (lambda whole: [*(whole | {WEIGHTS: whole[WEIGHTS][:-5]}).items()], CorruptFile, "truncated"),
    "no bytes": (lambda whole: [*(whole | {WEIGHTS: b""}).items()], CorruptFile, "has 0 bytes"),
    "a long name": (
        lambda whole: [*(whole | {WEIGHTS: save({"n" * 5000: torch.zeros(2)})}).items()], Rejected, "at most 1000 printable",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ZIPS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_archives(case: str, method: int, whole: Mapping[str, bytes], tmp_path: Path) -> None:
    make, error, words = ZIPS[case]
    refused(as_zip(tmp_path, make(whole), method), error, words)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_twice(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    refused(as_zip(tmp_path, [*whole.items(), (WEIGHTS, whole[WEIGHTS])]), CorruptFile, "in the archive twice")


def test_a_text_that_unpacks_to_much(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    files = [*(whole | {CONFIG: b" " * 2_000_000}).items()]
    limits = UploadLimits(header_bytes=1_000_000)
    refused(as_zip(tmp_path, files, zipfile.ZIP_DEFLATED), ContentTooLarge, "more than the limit of 1000000", limits)
    refused(as_tar(tmp_path, files), ContentTooLarge, "'config.json' has 2000000 bytes", limits)
    small = UploadLimits(bytes=1_000_000)
    refused(as_zip(tmp_path, files, zipfile.ZIP_DEFLATED), ContentTooLarge, "over the limit of 1000000", small)
    refused(as_tar(tmp_path, files), ContentTooLarge, "more than the limit of 1000000 bytes", small)


def test_windows_slashes_are_slashes(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    assert checked(as_zip(tmp_path, [(f"mine\\{name}", content) for name, content in whole.items()])).pretrained


def test_tars_with_more_than_files(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    def entry(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.linkname = kind, target
        return made

    config = (CONFIG, whole[CONFIG])
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        refused(as_tar(tmp_path, [config, entry(WEIGHTS, kind, "/etc/passwd")]), CorruptFile, "is a link")
    refused(as_tar(tmp_path, [config, entry(WEIGHTS, tarfile.FIFOTYPE)]), CorruptFile, "is a device or pipe")
    refused(as_tar(tmp_path, [(f"a/../{CONFIG}", b"{}"), (WEIGHTS, whole[WEIGHTS])]), CorruptFile, "points outside")
    refused(as_tar(tmp_path, [*whole.items(), (f"./{WEIGHTS}", whole[WEIGHTS])]), CorruptFile, "in the archive twice")


# Weights in parts.


def in_parts(
    whole: Mapping[str, bytes], folder: Path, index: Callable[[dict[str, str]], Any] | bytes | None = None
) -> dict[str, bytes]:
    """The folder with its weights in two parts. index: its content, or what makes it of the file of every tensor."""
    tensors = load_file_of(whole, folder)
    names = list(tensors)
    placed = {name: FIRST if n < len(names) // 2 else SECOND for n, name in enumerate(names)}
    files = {
        part: save({name: tensors[name] for name, where in placed.items() if where == part}) for part in (FIRST, SECOND)
    }
    text = (
        index if isinstance(index, bytes) else json.dumps(index(placed) if index else {"weight_map": placed}).encode()
    )
    return {CONFIG: whole[CONFIG], INDEX: text, **files}


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        (lambda placed: {"weight_map": dict.fromkeys(placed, FIRST)}, CorruptFile, f"is not in {FIRST}, where the index"),
        (lambda placed: {"weight_map": dict.fromkeys(placed, "..\\" + FIRST)}, UnsafePath, "parts lie beside it"),
        (lambda placed: {"weight_map": dict.fromkeys(placed, WEIGHTS)}, CorruptFile, "parts are named"),
        (
            lambda placed: {"weight_map": dict.fromkeys(placed, "model-٠٠٠٠١-of-٠٠٠٠٢.safetensors")},
            CorruptFile,
            "parts are named",
        ),
        (lambda placed: {"weight_map": {name: [FIRST] for name in placed}}, CorruptFile, "has no `weight_map`"),
        (b"null", CorruptFile, "is a JSON NoneType"),
        (b'{"weight_map": ' + b'{"a": ' * 3000 + b"1" + b"}" * 3001, CorruptFile, "is not JSON"),
        (b'{"metadata": {"total_size": NaN}, "weight_map": {}}', CorruptFile, "NaN is no number"),
        (b'{"weight_map": {"a": "' + FIRST.encode() + b'", "a": "' + SECOND.encode() + b'"}}', CorruptFile, "occurs twice"),
    ],
)  # fmt: skip
def test_indexes(index: Any, error: type[Rejected], words: str, whole: Mapping[str, bytes], tmp_path: Path) -> None:
    refused(as_zip(tmp_path, [*in_parts(whole, tmp_path, index).items()]), error, words)


def test_a_tensor_in_two_parts(whole: Mapping[str, bytes], tmp_path: Path) -> None:
    files = in_parts(whole, tmp_path)
    assert checked(as_zip(tmp_path, [*files.items()])).network is not None
    (tmp_path / "out").unlink()
    refused(
        as_zip(tmp_path, [*(files | {SECOND: whole[WEIGHTS]}).items()]), CorruptFile, f"is in {SECOND}, where the index"
    )
    pickle = files | {SECOND: pickled(files[SECOND])}
    refused(as_zip(tmp_path, [*pickle.items()]), CorruptFile, f"{SECOND} is no safetensors file")
    refused(
        as_zip(tmp_path, [*files.items(), (WEIGHTS, whole[WEIGHTS])]),
        CorruptFile,
        "several networks. weights, .model.safetensors.index.json. and",
    )


# The metadata of a weights file, which a result carries its configuration in.


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"wbar.config": "[]"}, "wbar.config is a JSON list"),
        ({"wbar.config": "{"}, "wbar.config is not JSON"),
        ({"wbar.config": '{"model_type": "vit", "a": ' + "[" * 30 + "]" * 30 + "}"}, "more than 20 levels"),
        ({"wbar.config": '{"auto_map": {"AutoModel": "x.Y"}}'}, "names code to run"),
        ({"wbar.config": '{"model_type": "vit"}', "wbar.architecture": "x" * 10**6}, "is no image classifier"),
        ({"config": "{" + '"a":{' * 3000}, "is not JSON"),
        ({"pretrained_cfg": "{" + " " * (2 * 2**20) + "}"}, "is not JSON"),
    ],
)
def test_metadata(metadata: dict[str, str], words: str, whole: Mapping[str, bytes], tmp_path: Path) -> None:
    tensors = load_file_of(whole, tmp_path)
    save_file(tensors, tmp_path / "upload", metadata)
    refused(tmp_path / "upload", Rejected, words)
