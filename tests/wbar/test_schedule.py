"""The schedule of every method, written out by hand where it is short."""

from math import cos, pi

import pytest
from pydantic import ValidationError

from wbar import method
from wbar.method import METHODS
from wbar.schedule import build_schedule, shifted, steps_per_epoch
from wbar_averaging import cyclic_lr

PLAIN = {"lr": 0.8, "control_lr": 1.0, "pull": 0.0}


def rows(steps_per_epoch: int = 2, **method: object) -> list[tuple]:
    """(rate, phase, cycle, epoch, snapshot here, enters the mean, pull) of every step."""
    schedule = build_schedule(METHODS.validate_python(PLAIN | method), steps_per_epoch)
    places = [schedule.at(step) for step in range(schedule.total_steps)]
    return [
        (round(p.lr, 6), p.phase, p.cycle, p.epoch, p.ends_cycle, schedule.visits(p.step), schedule.pull(p.step))
        for p in places
    ]


def rates(**method: object) -> list[float]:
    return [place[0] for place in rows(**method)]


def test_swa_anneals_and_then_stays() -> None:
    places = rows(type="swa", epochs=4, anneal_epochs=1, anneal_from=1.6, anneal="linear", pull=0.5)
    assert places == [
        (1.6, "high", 1, 1, False, False, 0.5),
        (1.2, "high", 1, 1, False, False, 0.5),
        (0.8, "low", 1, 2, False, False, 0.5),
        (0.8, "low", 1, 2, True, True, 0.5),
        (0.8, "low", 2, 3, False, False, 0.5),
        (0.8, "low", 2, 3, True, True, 0.5),
        (0.8, "low", 3, 4, False, False, 0.5),
        (0.8, "low", 3, 4, True, True, 0.5),
    ]


@pytest.mark.parametrize(
    ("spacing", "marks"),
    [
        ({"snapshot_epochs": 1.0}, [4, 8, 12]),
        ({"snapshot_epochs": 0.5}, [2, 4, 6, 8, 10, 12]),
        ({"snapshot_steps": 5}, [5, 10, 12]),
        ({"snapshot_epochs": 100.0}, [12]),
    ],
)
def test_snapshots_come_every_so_often_and_at_the_end(spacing: dict[str, object], marks: list[int]) -> None:
    places = rows(4, type="lawa", epochs=3, final_lr=0.1, **spacing)
    assert [step + 1 for step, place in enumerate(places) if place[4]] == marks


def test_every_step_of_an_ema_is_a_visit_and_six_snapshots_are_kept() -> None:
    places = rows(1, type="ema", epochs=13, final_lr=0.1)
    assert all(place[5] for place in places)
    assert [step + 1 for step, place in enumerate(places) if place[4]] == [3, 5, 7, 9, 11, 13]


def test_the_shapes_of_a_plain_fine_tune() -> None:
    # To 0, which no step is wasted at: u = i/T. To a floor that trains, the last step is there: u = i/(T − 1).
    five = [0.8 * (1 + cos(pi * u / 5)) / 2 for u in range(5)]
    assert rates(steps_per_epoch=1, type="none", epochs=5, final_lr=0.0) == pytest.approx(five, abs=1e-6)
    assert rates(steps_per_epoch=1, type="none", epochs=5, final_lr=0.4, shape="linear") == pytest.approx(
        [0.8, 0.7, 0.6, 0.5, 0.4]
    )
    stepwise = rates(steps_per_epoch=1, type="none", epochs=4, final_lr=0.0, shape="step", milestones=[0.25, 0.75])
    assert stepwise == pytest.approx([0.8, 0.08, 0.08, 0.008])
    falling = rates(type="none", epochs=2, final_lr=0.0, shape="exponential", gamma=0.25)
    assert falling == pytest.approx([0.8, 0.4, 0.2, 0.1])
    poly = rates(steps_per_epoch=3, type="none", epochs=2, final_lr=0.0, shape="poly")
    assert poly == pytest.approx(
        [poly[0] * (1 - t / 6) ** 0.9 for t in range(6)], rel=1e-4
    )  # (1 − t/T)^0.9, T = 6 steps
    saw = rates(steps_per_epoch=3, type="none", epochs=2, final_lr=0.0, shape="sawtooth")
    assert saw == pytest.approx([0.8, 0.404, 0.008] * 2)


def test_a_warm_up_is_i_eta_over_m_or_a_tenth() -> None:
    gradual = rates(steps_per_epoch=4, type="none", epochs=2, final_lr=0.8, shape="constant", warmup_epochs=1)
    assert gradual == pytest.approx([0.2, 0.4, 0.6, 0.8] + [0.8] * 4)
    steady = rates(
        steps_per_epoch=4, type="none", epochs=2, final_lr=0.8, shape="constant", warmup_epochs=0.5, warmup="constant"
    )
    assert steady == pytest.approx([0.08, 0.08] + [0.8] * 6)


def test_a_high_phase_may_warm_up_and_fall() -> None:
    high = {"lr": 0.8, "epochs": 2, "shape": "linear", "warmup_epochs": 1}
    schedule = build_schedule(
        METHODS.validate_python({"cycles": 2, "high": high, "low": {"lr": 0.2}, "pull": 0.0, "control_lr": 1.0}), 2
    )
    one = [schedule.at(step).lr for step in range(6)]
    assert one == pytest.approx([0.5, 0.8, 0.8, 0.2, 0.2, 0.2])
    assert [schedule.at(step).lr for step in range(6, 12)] == pytest.approx(one)


def test_the_last_low_phase_may_fall_to_nothing() -> None:
    cycles = {"cycles": 2, "high": {"lr": 0.8, "epochs": 0.5}, "low": {"lr": 0.2}, "pull": 0.0, "control_lr": 1.0}
    schedule = build_schedule(METHODS.validate_python(cycles | {"anneal_last": True}), 4, rate_factor=2.0)
    fall = [0.4 * (1 + cos(pi * u / 4)) / 2 for u in range(4)]
    assert [schedule.rate(step) for step in range(12)] == pytest.approx([1.6] * 2 + [0.4] * 4 + [1.6] * 2 + fall)
    with pytest.raises(ValidationError, match=r"low.epochs is 0"):
        METHODS.validate_python(cycles | {"anneal_last": True, "low": {"lr": 0.2, "epochs": 0}})


def test_auto_walks_as_the_control_does() -> None:
    places = rows(4, type="auto", epochs=2, segments=4, visit_epochs=0.25)
    fall = [0.8 * (1 + cos(pi * u / 8)) / 2 for u in range(8)]
    assert [place[0] for place in places] == pytest.approx(fall, abs=1e-6)
    assert [place[1] for place in places] == ["high"] + ["low"] * 7
    assert [place[2] for place in places] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(place[5] for place in places)
    assert {place[6] for place in places} == {0.0}
    auto, control = (
        build_schedule(METHODS.validate_python(PLAIN | one | {"epochs": 7, "lr": 0.3, "control_lr": 0.3}), 13)
        for one in ({"type": "auto"}, {"type": "none", "final_lr": 0.0})
    )
    assert [auto.rate(step) for step in range(7 * 13)] == [control.rate(step) for step in range(7 * 13)]


def test_auto_moves_a_memorised_start_faster_holds_and_pulls_while_the_rate_falls() -> None:
    method = METHODS.validate_python(PLAIN | {"type": "auto", "epochs": 2, "memorised": {"ratio": 0.2, "pull": 0.1}})
    schedule = build_schedule(method, 4, start_kind="memorised", rate_factor=2.0)
    fall = [1.6 * (1 + cos(pi * u / 4)) / 2 for u in range(4)]
    assert [schedule.rate(step) for step in range(8)] == pytest.approx([1.6] * 4 + fall)
    assert [schedule.pull(step) for step in range(8)] == [0.0] * 5 + [
        0.1
    ] * 3  # the first of the fall is at the high rate


def test_auto_visits_at_least_24_times_if_there_are_as_many_steps() -> None:
    def visits(epochs: int, per_epoch: int, **options: object) -> int:
        method = METHODS.validate_python(PLAIN | {"type": "auto", "epochs": epochs} | options)
        schedule = build_schedule(method, per_epoch)
        assert all(schedule.visits(mark - 1) for mark in schedule.snapshots)
        return sum(map(schedule.visits, range(schedule.total_steps)))

    assert visits(12, 20) == 48
    assert visits(12, 20, visit_epochs=3) >= 24
    assert visits(3, 20) >= 24
    assert visits(2, 5) == 10


def test_a_back_off_divides_the_high_rate_alone() -> None:
    method = METHODS.validate_python({"high": {"lr": 0.9}, "low": {"lr": 0.2}, "pull": 0.0, "control_lr": 1.0})
    rates = [build_schedule(method, 1, back_offs).at(step).lr for back_offs in (1, 2) for step in (0, 1)]
    assert rates == pytest.approx([0.3, 0.2, 0.1, 0.1])  # never a low rate above the high one


@pytest.mark.parametrize(
    ("when", "expected"), [("all", [1] * 8), ("low", [0, 0, 1, 1] * 2), ("late", [0] * 4 + [1] * 4)]
)
def test_when_it_pulls(when: str, expected: list[int]) -> None:
    method = METHODS.validate_python(
        {"cycles": 2, "high": {"lr": 0.8}, "low": {"lr": 0.2}, "pull": 1.0, "pull_in": when, "control_lr": 1.0}
    )
    schedule = build_schedule(method, 2)
    assert [schedule.pull(step) for step in range(8)] == expected


def test_a_schedule_that_begins_later_counts_on() -> None:
    schedule = build_schedule(METHODS.validate_python(PLAIN | {"type": "swa", "anneal_from": 1.0}), 3)
    place = shifted(schedule.at(4), 10, 4)
    assert (place.step, place.epoch, place.step_in_epoch, place.cycle) == (14, 6, 1, 2)
    with pytest.raises(IndexError, match="step 36 lies outside the schedule of 36 steps"):
        schedule.at(36)


def test_swa_without_an_annealing_trains_at_its_own_rate() -> None:
    """It trained at `anneal_from`: an annealing of a single step returned where it began."""
    assert rates(type="swa", epochs=3, anneal_epochs=0, anneal_from=1.6) == [0.8] * 6


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_decay_to_zero_wastes_no_step_and_one_to_a_floor_ends_there(shape: str) -> None:
    to_zero = rates(type="none", epochs=4, final_lr=0.0, shape=shape)
    assert to_zero[-1] > 0
    assert to_zero == sorted(to_zero, reverse=True)
    to_a_floor = rates(type="none", epochs=4, final_lr=0.02, shape=shape)
    assert to_a_floor[0] == 0.8
    assert to_a_floor[-1] == 0.02


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # swa: after its annealing, which it never did; a warm-up is no low phase, which it was.
        ({"type": "swa", "epochs": 3, "anneal_epochs": 1, "anneal_from": 1.6}, [0, 0, 1, 1, 1, 1]),
        ({"type": "swa", "epochs": 2, "anneal_from": 1.6}, [1, 1, 1, 1]),
        ({"type": "none", "epochs": 3, "final_lr": 0.1, "warmup_epochs": 1}, [0, 0, 0, 1, 1, 1]),
        ({"type": "ema", "epochs": 2, "final_lr": 0.1, "shape": "step", "milestones": [0.5]}, [0, 0, 1, 1]),
    ],
)
def test_low_phases_of_methods_without_cycles(method: dict[str, object], expected: list[int]) -> None:
    pulls = [place[6] for place in rows(**method, pull=1.0, pull_in="low")]
    assert pulls == expected


def test_twelve_sawtooth_epochs_of_swa_for_object_detection() -> None:
    method = METHODS.validate_python(
        {
            "cycles": 12,
            "high": {"lr": 0.02, "shape": "sawtooth", "epochs": 1},
            "low": {"lr": 0.002, "epochs": 0},
            "pull": 0.0,
            "control_lr": 1.0,
        }
    )
    schedule = build_schedule(method, 5)
    assert schedule.total_steps == 60
    assert schedule.snapshots == tuple(range(5, 61, 5))
    one = [schedule.at(step).lr for step in range(5)]
    assert one[0] == 0.02
    assert one[-1] == pytest.approx(0.0002)
    assert [schedule.at(step).lr for step in range(55, 60)] == pytest.approx(one)
    assert {schedule.at(step).phase for step in range(60)} == {"high"}


def test_phases_may_be_fractions_of_an_epoch() -> None:
    method = METHODS.validate_python(
        {
            "cycles": 2,
            "high": {"lr": 0.8, "epochs": 0.5},
            "low": {"lr": 0.2, "epochs": 0.25},
            "pull": 0.0,
            "control_lr": 1.0,
        }
    )
    schedule = build_schedule(method, 8)
    assert [schedule.at(step).lr for step in range(schedule.total_steps)] == ([0.8] * 4 + [0.2] * 2) * 2
    assert [schedule.at(step).epoch for step in range(12)] == [1] * 8 + [2] * 4
    saw = METHODS.validate_python(
        {"cycles": 1, "high": {"lr": 0.8, "epochs": 0.5, "shape": "sawtooth"}, "low": {"lr": 0.1, "epochs": 0}}
        | {"pull": 0.0, "control_lr": 1.0}
    )
    assert [build_schedule(saw, 8).at(step).lr for step in range(4)] == pytest.approx([0.8, 0.536, 0.272, 0.008])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"high": {"lr": 0.1}, "low": {"lr": 0.2}}, "low.lr 0.2 is above high.lr 0.1"),
        ({"type": "none", "lr": 0.1, "final_lr": 0.2}, "final_lr 0.2 is above lr 0.1"),
        ({"high": {"epochs": 0}}, "greater than 0"),
    ],
)
def test_what_no_schedule_can_do_is_refused(method: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        METHODS.validate_python(method)


def test_a_job_knows_the_shapes_that_there_are_formulas_for() -> None:
    assert method.Shape == cyclic_lr.Shape, "wbar.method may not import it"


def test_a_last_batch_that_leaves_a_device_one_image_is_not_counted() -> None:
    assert [steps_per_epoch(images, 10) for images in (20, 21, 22, 5, 1)] == [2, 2, 3, 1, 1]
    assert [steps_per_epoch(images, 10, devices=2) for images in (23, 24)] == [2, 3]


@pytest.mark.parametrize("shape", ["constant", "cosine", "exponential", "sawtooth", "step"])
def test_a_schedule_of_a_trillion_steps_is_made_without_walking_it(shape: str) -> None:
    asked = METHODS.validate_python(PLAIN | {"type": "none", "epochs": 1000, "shape": shape, "final_lr": 0.01})
    schedule = build_schedule(asked, 10**9)
    assert schedule.total_steps == 10**12
    assert (schedule.phase(0), schedule.phase(10**12 - 1)) == ("high", "high" if shape == "constant" else "low")


def test_an_annealing_that_rounds_up_to_all_steps_leaves_one_to_average() -> None:
    places = rows(20, type="swa", epochs=12, anneal_epochs=11.99, anneal_from=1.6, average="swad")
    assert len(places) == 240
    assert [n for n, place in enumerate(places) if place[5]] == [239]
    assert places[-1][0] == 0.8
