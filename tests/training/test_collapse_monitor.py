"""The collapse watch: sound runs are left alone, each mistake is called by its name."""

import dataclasses

import pytest

from facelift_jax.training import collapse_monitor

SETTING = collapse_monitor.Setting(num_inputs=6, has_silhouettes=True, patience=100)
SOUND = {
    "monitor/contrast": 0.2,
    "monitor/contrast_truth": 0.25,
    "monitor/color_distance": 0.22,
    "monitor/coverage": 0.09,
    "monitor/coverage_truth": 0.08,
    "monitor/background_error": 0.001,
    "monitor/unseen_targets": 0.6,
    "monitor/agreement": 0.99,
    "monitor/not_taken": 0.0,
    "inputs/psnr_fg": 18.6,
    "held_out/psnr_fg": 17.5,
    "inputs/own_view_share": 0.35,
    "inputs/lovo_drop": 0.4,
}
FILLED = {"monitor/coverage": 0.9}
FLAT = {"inputs/own_view_share": 0.97, "inputs/lovo_drop": 20.0}
GAP = {"inputs/psnr_fg": 34.7, "held_out/psnr_fg": 7.0}
INPUTS_ONLY = {"monitor/unseen_targets": 0.0}


def alarms_of(changes, step=1000, **setting):
    found = collapse_monitor.find_alarms(
        step, SOUND | changes, dataclasses.replace(SETTING, **setting)
    )
    return {alarm.name: alarm.cause for alarm in found}


def test_a_sound_run_and_one_that_knows_nothing_raise_no_alarm():
    assert alarms_of({}) == {}
    assert collapse_monitor.find_alarms(1000, {}, SETTING) == []
    large = {"monitor/coverage": 0.72, "monitor/coverage_truth": 0.7}
    assert alarms_of(large) == {}
    nothing = dict.fromkeys(SOUND, 0.0) | {"monitor/agreement": float("nan")}
    assert collapse_monitor.find_alarms(1000, nothing, SETTING) == []


@pytest.mark.parametrize(
    ("changes", "setting", "name", "cause"),
    [
        ({"monitor/agreement": 0.5}, {}, "cameras", collapse_monitor.WRONG_CAMERAS),
        (
            {"monitor/background_error": 0.5},
            {},
            "background",
            collapse_monitor.OTHER_BACKGROUND,
        ),
        ({"monitor/not_taken": 0.9}, {}, "not_taken", collapse_monitor.TOO_LARGE),
        (
            FILLED | INPUTS_ONLY,
            {"has_silhouettes": False},
            "frustums",
            collapse_monitor.UNCHECKED,
        ),
        (
            FLAT | INPUTS_ONLY,
            {"has_silhouettes": False},
            "flat",
            collapse_monitor.UNCHECKED,
        ),
        (GAP | INPUTS_ONLY, {}, "gap", collapse_monitor.INPUTS_ONLY),
        (GAP, {"num_inputs": 1}, "gap", collapse_monitor.ONE_INPUT),
        ({"monitor/coverage": 0.001}, {}, "nothing", collapse_monitor.UNKNOWN),
        ({"monitor/contrast": 0.01}, {}, "blob", collapse_monitor.UNKNOWN),
    ],
)
def test_each_symptom_has_its_likely_cause(changes, setting, name, cause):
    assert alarms_of(changes, **setting) == {name: cause}


def test_a_mistake_in_the_data_is_the_first_cause_of_what_it_leads_to():
    found = alarms_of(FLAT | INPUTS_ONLY | {"monitor/agreement": 0.5})
    assert list(found) == ["cameras", "flat"]
    assert found["flat"].startswith(collapse_monitor.WRONG_CAMERAS)
    assert found["flat"].endswith(collapse_monitor.INPUTS_ONLY)


def test_frustums_around_an_object_that_nearly_fills_the_picture():
    found = alarms_of({"monitor/coverage": 0.99, "monitor/coverage_truth": 0.7})
    assert list(found) == ["frustums"]


def test_what_is_painted_is_not_judged_before_the_warm_up_is_over():
    assert alarms_of(FILLED, step=99) == {}
    assert "frustums" in alarms_of(FILLED, step=100)


def test_one_input_paints_all_there_is_and_that_is_no_symptom():
    assert alarms_of(FLAT, num_inputs=1) == {}


def test_an_alarm_is_told_once_until_it_is_over():
    first = collapse_monitor.find_alarms(1000, SOUND | FILLED, SETTING)
    second = collapse_monitor.find_alarms(1025, SOUND | FILLED | GAP, SETTING)
    (line,) = collapse_monitor.describe_new(first, [])
    assert line.startswith("mean opacity 0.90 where the object covers 0.08 of the")
    assert "; likely cause: none of the known ones" in line
    (line,) = collapse_monitor.describe_new(second, first)
    assert line.startswith(
        "psnr_fg 34.7 dB from the input cameras, 7.0 dB from cameras"
    )
