"""What is said before a job is spent, and of a network that could be another one."""

from dataclasses import replace

import pytest

from tests.store.rows import spec
from tests.wbar.test_resolve import facts
from wbar.checkpoints import NetworkArchitecture
from wbar.job_warnings import warnings_about
from wbar.spec import Network


def test_classes_that_leave_outputs_without_images() -> None:
    five = replace(facts(), classes=tuple("abcde"))
    (warning,) = warnings_about(spec(), five)
    assert warning.pointer == "/dataset"
    assert "5 classes and the checkpoint's network 10 outputs" in warning.detail
    assert "'a' is output 0, 'b' is output 1, 'c' is output 2, …, and 5 outputs get no images" in warning.detail


def test_classes_that_fit_or_were_said_are_no_matter() -> None:
    five = replace(facts(), classes=tuple("abcde"))
    assert list(warnings_about(spec(), facts())) == []
    assert list(warnings_about(spec(classes=tuple("abcdefghij")), five)) == []
    assert list(warnings_about(spec(network=Network("resnet20", 1)), replace(facts(), classes=("no", "yes")))) == []


@pytest.mark.parametrize(
    ("name", "others", "note", "warning"),
    [
        ("resnet18", ["timm's resnetblur18"], True, False),
        ("googlenet", ["torchvision's googlenet with transform_input=True"], False, True),
        ("resnet18", None, False, False),
    ],
)
def test_the_usual_network_is_a_note_and_no_warning(
    name: str, others: list[str] | None, note: bool, warning: bool
) -> None:
    one = NetworkArchitecture(name=name, num_classes=10, source="detected", ambiguous_with=others)
    assert (one.note is not None, one.warning is not None) == (note, warning)
    assert all(other in (one.note or one.warning or "") for other in others or ())
