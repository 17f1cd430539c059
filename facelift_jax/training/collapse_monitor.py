"""The collapse monitor: detects runs that do not learn a 3D object, and says why.

Cheap metrics are computed at every step (metrics/collapse.py), expensive ones at every
evaluation, and a few training examples are checked once at the start
(example_checks.py). A symptom is a metric outside the range of healthy runs; it is
reported with its likely cause, which is derived from the cameras, the images and the
config. The limits were measured with GS-LRM's smallest network at 32 px: healthy runs
stay inside them, and runs with one deliberate mistake leave them
(tests/training/test_synthetic_collapse.py).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging

from facelift_jax.losses import is_used
from facelift_jax.metrics import MONITOR_DEFINITIONS
from facelift_jax.training.example_checks import EXAMPLE_DEFINITIONS

ACTIONS = ("warn", "stop")

DEFINITIONS = {
    **MONITOR_DEFINITIONS,
    **EXAMPLE_DEFINITIONS,
    "not_taken": "share of the steps since the last line that changed no parameter",
}
"""Name of each `monitor/...` metric -> definition."""

MAX_BACKGROUND_ERROR = 0.02  # one step of an 8-bit color is .004
MIN_AGREEMENT = 0.95  # healthy data has .99
MAX_EXTRA_COVERAGE = 0.15  # share of the background; healthy runs have .03
MIN_COVERAGE = 0.1  # share of the object's coverage
MIN_CONTRAST = 0.25  # share of the ground truth's contrast
MAX_OWN_VIEW_SHARE, MAX_LOVO_DROP = 0.9, 10.0  # share; dB
MAX_GAP = 3.0  # dB between input and held-out views; healthy runs have .8 to 1.5
MAX_NOT_TAKEN = 0.2  # share of the steps
MIN_STEPS = 10  # needed to compute the share of steps not taken
PATIENCE = 2  # warm-up lengths; after one, a healthy run may still render a fog

USED_METRICS = (
    *(f"monitor/{name}" for name in DEFINITIONS),
    *(f"inputs/{name}" for name in ("psnr_fg", "own_view_share", "lovo_drop")),
    "held_out/psnr_fg",
)

WRONG_CAMERAS = (
    "the cameras do not match the images: no shape is consistent with all masks, so "
    "each view is fitted on its own; run check_data on the data set"
)
OTHER_BACKGROUND = (
    "targets and renderings have different backgrounds, and filling the frustums with "
    "the targets' background lowers the loss most: something changes images after they "
    "were composited on data.background; change colors before that, or only those of "
    "the object"
)
ONE_INPUT = (
    "there is only one input view, so most of the object is unseen and must be "
    "guessed: set data.num_inputs to four to six"
)
INPUTS_ONLY_NO_SILHOUETTES = (
    "every target is an input view and no loss term compares silhouettes, so a flat "
    "image in front of each camera minimizes the loss: raise data.min_held_out, or "
    "give loss.alpha_mse a weight"
)
INPUTS_ONLY = (
    "every target is an input view, so no other direction is learned: raise "
    "data.min_held_out"
)
LARGE_GRADIENTS = (
    "gradients are not finite or larger than optim.skip_norm: lower "
    "optim.learning_rate, use larger batches, or start perceptual terms later or with "
    "smaller weights"
)
UNKNOWN = (
    "not one that the monitor recognizes (cameras, background, inputs, targets): look "
    "at the images and compare the config with the unchanged recipe"
)


@dataclasses.dataclass(frozen=True)
class MonitorSettings:
    """The settings of a run that can cause a symptom.

    Attributes:
      num_inputs: number of input views of the network.
      has_silhouettes: whether a loss term compares silhouettes.
      patience: first step whose renderings are checked; before, most networks render a
        half-transparent fog.
    """

    num_inputs: int
    has_silhouettes: bool
    patience: float


class Alarm(NamedTuple):
    """The name of a symptom, the symptom in words, and its likely cause."""

    name: str
    symptom: str
    cause: str


class CollapseMonitor:
    """The latest metrics of a run and its current alarms.

    Attributes:
      alarms: of the last update; at first those of the earlier metrics of the run, so
        that a resumed run does not report them again.
    """

    def __init__(self, config: Any, step: int, metrics: Mapping[str, float]):
        self._settings = monitor_settings(config)
        self._latest = dict(metrics)
        self.alarms = find_alarms(step, self._latest, self._settings)

    def update(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Takes new metrics; logs and returns the new alarms, one line for each."""
        previous, self._latest = self.alarms, {**self._latest, **metrics}
        self.alarms = find_alarms(step, self._latest, self._settings)
        new = describe_new(self.alarms, previous)
        for text in new:
            logging.warning("step %d: %s", step, text)
        return new


def monitor_settings(config: Any) -> MonitorSettings:
    """The settings that a whole config contains."""
    return MonitorSettings(
        config.data.num_inputs,
        is_used(config.loss.alpha_mse),
        PATIENCE * config.optim.warmup_steps,
    )


def describe(alarm: Alarm) -> str:
    """The alarm as one line."""
    return f"{alarm.symptom}; likely cause: {alarm.cause}"


def describe_new(alarms: Sequence[Alarm], previous: Sequence[Alarm]) -> list[str]:
    """One line for each alarm whose name is not among the previous alarms."""
    names = {alarm.name for alarm in previous}
    return [describe(alarm) for alarm in alarms if alarm.name not in names]


def find_alarms(
    step: int, metrics: Mapping[str, float], settings: MonitorSettings
) -> list[Alarm]:
    """The symptoms of a run at `step`, from the latest value of every metric.

    Metrics that are missing or NaN raise no alarm.
    """
    values = {name: metrics.get(name, math.nan) for name in USED_METRICS}
    alarms = _data_alarms(values)
    causes = [alarm.cause for alarm in alarms] + _config_causes(values, settings)
    cause = "; also: ".join(causes) or UNKNOWN
    symptoms = _evaluation_symptoms(values, settings)
    if step >= settings.patience:
        symptoms |= _rendering_symptoms(values)
    alarms += [Alarm(name, text, cause) for name, text in symptoms.items()]
    not_taken = values["monitor/not_taken"]
    if not_taken > MAX_NOT_TAKEN:
        symptom = f"{not_taken:.0%} of the latest steps were not taken"
        alarms.append(Alarm("not_taken", symptom, LARGE_GRADIENTS))
    return alarms


def coverage_limits(truth: float) -> tuple[float, float]:
    """Lowest and highest coverage of a healthy run, from that of the ground truth."""
    return MIN_COVERAGE * truth, truth + MAX_EXTRA_COVERAGE * (1 - truth)


def contrast_limit(truth: float) -> float:
    """Lowest contrast of a healthy run, from that of the ground truth."""
    return MIN_CONTRAST * truth


def _data_alarms(values: Mapping[str, float]) -> list[Alarm]:
    """Faults of the data; each is symptom and cause at the same time."""
    alarms = []
    agreement, error = values["monitor/agreement"], values["monitor/background_error"]
    if agreement < MIN_AGREEMENT:
        symptom = (
            f"in the worst view, only {agreement:.0%} of the object's pixels have a "
            "point on their ray that all other masks contain"
        )
        alarms.append(Alarm("cameras", symptom, WRONG_CAMERAS))
    if error > MAX_BACKGROUND_ERROR:
        symptom = (
            f"the targets' background differs from the rendered one by {error:.2f}"
        )
        alarms.append(Alarm("background", symptom, OTHER_BACKGROUND))
    return alarms


def _config_causes(values: Mapping[str, float], settings: MonitorSettings) -> list[str]:
    """Settings that are known to produce flat images."""
    causes = []
    if settings.num_inputs == 1:
        causes.append(ONE_INPUT)
    if values["monitor/unseen_targets"] == 0:
        has_silhouettes = settings.has_silhouettes
        causes.append(INPUTS_ONLY if has_silhouettes else INPUTS_ONLY_NO_SILHOUETTES)
    return causes


def _evaluation_symptoms(
    values: Mapping[str, float], settings: MonitorSettings
) -> dict[str, str]:
    """Symptoms that an evaluation shows, by name."""
    symptoms = {}
    share, drop = values["inputs/own_view_share"], values["inputs/lovo_drop"]
    is_flat = share >= MAX_OWN_VIEW_SHARE and drop >= MAX_LOVO_DROP
    if settings.num_inputs > 1 and is_flat:
        symptoms["flat"] = (
            f"flat images: {share:.0%} of what an input camera sees are Gaussians of "
            f"its own view, and psnr_fg drops by {drop:.1f} dB without them"
        )
    inputs, held_out = values["inputs/psnr_fg"], values["held_out/psnr_fg"]
    if inputs - held_out >= MAX_GAP:
        symptoms["gap"] = (
            f"psnr_fg is {inputs:.1f} dB at the input cameras but {held_out:.1f} dB at "
            "held-out cameras"
        )
    return symptoms


def _rendering_symptoms(values: Mapping[str, float]) -> dict[str, str]:
    """Symptoms of the renderings, by name; for steps after `patience`."""
    symptoms = {}
    coverage, truth = values["monitor/coverage"], values["monitor/coverage_truth"]
    contrast, contrast_truth = (
        values["monitor/contrast"],
        values["monitor/contrast_truth"],
    )
    lowest, highest = coverage_limits(truth)
    if coverage > highest:
        symptoms["frustums"] = (
            f"mean alpha is {coverage:.2f} but the object covers {truth:.2f} of the "
            "image: the frustums are filled"
        )
    elif coverage < lowest:
        symptoms["nothing"] = (
            f"mean alpha is {coverage:.4f} but the object covers {truth:.2f} of the "
            "image: nothing is rendered"
        )
    elif contrast < contrast_limit(contrast_truth):
        symptoms["blob"] = (
            f"a blob of one color: contrast is {contrast:.3f}, that of the ground "
            f"truth {contrast_truth:.3f}"
        )
    return symptoms
