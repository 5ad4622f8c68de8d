"""segmentation-models-pytorch's networks: named by decoder and encoder, given images of any size, resumed to the bit."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from benchmarks.shapes import CLASSES
from tests.training.jobs import METHOD, KilledHere, LocalJob, Recorder, run
from tests.training.segmentation_jobs import make_segmentation_job
from wbar.errors import ArchitectureMismatch, UnknownArchitecture
from wbar.spec import Network
from wbar_training import state_files
from wbar_training.networks import smp_models
from wbar_training.networks.architectures import build, initialized, shapes_of
from wbar_training.networks.recognition import identify, recognize

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed: pip install 'wbar[smp]'"
)

NAME = "smp/unet-mobilenet_v2"
ONE_EACH = [f"smp/{decoder}-resnet18" for decoder in smp_models.SMP_DECODERS] + ["smp/segformer-mit_b0"]


def network(name: str = NAME, classes: int = len(CLASSES), channels: int = 3) -> Network:
    return Network(name, classes, channels=channels, entry=smp_models.entry(name))


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_network_is_what_its_name_and_tensors_say(name: str) -> None:
    found = identify(name, shapes_of(network(name, 4, channels=1)))
    assert (found.num_classes, found.channels, found.architecture.outputs) == (4, 1, "pixels")


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if "/pan-" in one or "/unet-" in one else pytest.mark.long) for one in ONE_EACH]
)
def test_the_answer_is_the_librarys_on_sides_that_it_takes(name: str) -> None:
    torch.manual_seed(0)
    ours = initialized(network(name)).eval()
    decoder, encoder = name.removeprefix("smp/").split("-")
    theirs = smp.create_model(decoder, encoder_name=encoder, encoder_weights=None, classes=len(CLASSES)).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 128, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)["out"], theirs(images), rtol=0, atol=0)
        continued = F.pad(images[..., :100, :150], (0, 10, 0, 28), mode="replicate")
        torch.testing.assert_close(ours(images[..., :100, :150])["out"], theirs(continued)[..., :100, :150])
        assert ours(images[..., :5, :7])["out"].shape == (2, len(CLASSES), 5, 7)


def test_unknown_names_and_tensors_of_others_are_refused_in_words() -> None:
    with pytest.raises(UnknownArchitecture, match=r"similar names: .*smp/unet-resnet34"):
        identify("smp/unet-resnet35", {})
    with pytest.raises(UnknownArchitecture, match="is not a network of"):
        identify("smp/linknet-mit_b0", {})
    with pytest.raises(UnknownArchitecture, match="give `architecture`, the decoder and the encoder"):
        recognize(shapes_of(network()))
    with pytest.raises(ArchitectureMismatch, match="smp/unet-resnet18"):
        identify("smp/unet-resnet18", shapes_of(network()))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:`timm-` encoders are deprecated:DeprecationWarning")  # they are built all the same
def test_every_name_in_the_list_can_be_built_and_no_other() -> None:
    encoders = smp.encoders.get_encoder_names()
    for decoder in smp_models.SMP_DECODERS:
        for encoder in encoders:
            name = f"smp/{decoder}-{encoder}"
            if name in smp_models.names():
                build(network(name))
            else:
                with pytest.raises(ValueError, match=r"support|available"):  # each encoder in its own words
                    smp.create_model(decoder, encoder_name=encoder, encoder_weights=None)


@pytest.mark.long
def test_a_death_changes_nothing_and_the_library_loads_the_result(tmp_path: Path) -> None:
    def job(name: str) -> LocalJob:
        method = METHOD.model_copy(update={"cycles": 1})
        made = make_segmentation_job(tmp_path / name, method, network(), train=4, val=2, sizes=[(32, 32), (40, 36)])
        return made.changed(save_every_seconds=0.0)

    whole, killed = run(job("whole"), Recorder()), job("killed")
    with pytest.raises(KilledHere):
        run(killed, Recorder(die_at=1))
    resumed = run(killed.changed(resume=state_files.latest(killed.scratch)), Recorder())
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.result == whole.result
    user = smp.Unet("mobilenet_v2", encoder_weights=None, classes=len(CLASSES))
    user.load_state_dict(load_file(whole.weights))
