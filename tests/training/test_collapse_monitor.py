"""The collapse monitor: healthy runs raise no alarm, and each mistake is named."""

import dataclasses

import pytest

from facelift_jax.training import collapse_monitor

SETTINGS = collapse_monitor.MonitorSettings(
    num_inputs=6, has_silhouettes=True, patience=100
)
HEALTHY = {
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


def alarms_of(changes, step=1000, **settings):
    """Name -> cause."""
    alarms = collapse_monitor.find_alarms(
        step, HEALTHY | changes, dataclasses.replace(SETTINGS, **settings)
    )
    return {alarm.name: alarm.cause for alarm in alarms}


def test_healthy_and_missing_metrics_raise_no_alarm():
    assert alarms_of({}) == {}
    assert collapse_monitor.find_alarms(1000, {}, SETTINGS) == []
    large = {"monitor/coverage": 0.72, "monitor/coverage_truth": 0.7}
    assert alarms_of(large) == {}
    nothing = dict.fromkeys(HEALTHY, 0.0) | {"monitor/agreement": float("nan")}
    assert collapse_monitor.find_alarms(1000, nothing, SETTINGS) == []


@pytest.mark.parametrize(
    ("changes", "settings", "name", "cause"),
    [
        ({"monitor/agreement": 0.5}, {}, "cameras", collapse_monitor.WRONG_CAMERAS),
        (
            {"monitor/background_error": 0.5},
            {},
            "background",
            collapse_monitor.OTHER_BACKGROUND,
        ),
        ({"monitor/not_taken": 0.9}, {}, "not_taken", collapse_monitor.LARGE_GRADIENTS),
        (
            FILLED | INPUTS_ONLY,
            {"has_silhouettes": False},
            "frustums",
            collapse_monitor.INPUTS_ONLY_NO_SILHOUETTES,
        ),
        (
            FLAT | INPUTS_ONLY,
            {"has_silhouettes": False},
            "flat",
            collapse_monitor.INPUTS_ONLY_NO_SILHOUETTES,
        ),
        (GAP | INPUTS_ONLY, {}, "gap", collapse_monitor.INPUTS_ONLY),
        (GAP, {"num_inputs": 1}, "gap", collapse_monitor.ONE_INPUT),
        ({"monitor/coverage": 0.001}, {}, "nothing", collapse_monitor.UNKNOWN),
        ({"monitor/contrast": 0.01}, {}, "blob", collapse_monitor.UNKNOWN),
    ],
)
def test_each_symptom_has_its_likely_cause(changes, settings, name, cause):
    assert alarms_of(changes, **settings) == {name: cause}


def test_a_fault_of_the_data_is_the_first_cause_of_other_symptoms():
    causes = alarms_of(FLAT | INPUTS_ONLY | {"monitor/agreement": 0.5})
    assert list(causes) == ["cameras", "flat"]
    assert causes["flat"].startswith(collapse_monitor.WRONG_CAMERAS)
    assert causes["flat"].endswith(collapse_monitor.INPUTS_ONLY)


def test_filled_frustums_around_an_object_that_nearly_fills_the_image():
    causes = alarms_of({"monitor/coverage": 0.99, "monitor/coverage_truth": 0.7})
    assert list(causes) == ["frustums"]


def test_renderings_are_not_checked_before_the_patience_is_over():
    assert alarms_of(FILLED, step=99) == {}
    assert "frustums" in alarms_of(FILLED, step=100)


def test_with_one_input_a_high_own_view_share_is_no_symptom():
    assert alarms_of(FLAT, num_inputs=1) == {}


def test_an_alarm_is_reported_once_until_it_is_over():
    first = collapse_monitor.find_alarms(1000, HEALTHY | FILLED, SETTINGS)
    second = collapse_monitor.find_alarms(1025, HEALTHY | FILLED | GAP, SETTINGS)
    (line,) = collapse_monitor.describe_new(first, [])
    assert line.startswith("mean alpha is 0.90 but the object covers 0.08 of the image")
    assert "; likely cause: not one that the monitor recognizes" in line
    (line,) = collapse_monitor.describe_new(second, first)
    assert line.startswith(
        "psnr_fg is 34.7 dB at the input cameras but 7.0 dB at held-out cameras"
    )
