"""The collapse watch: is a run on its way to something that is no object, and why?

Cheap figures come with every step (`objectives.collapse`), dear ones with every
evaluation. A symptom is a figure that no sound run reads; its cause is looked for in
what is known of cameras, pictures and config. Limits are measured on GS-LRM's smallest
network at 32 px: sound runs stay inside them, runs with one planted mistake leave them
(tests/training/test_synthetic_collapse.py).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from facelift_jax.data.examples import training_example
from facelift_jax.data.io import DataError
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import Source
from facelift_jax.data.validation.silhouettes import agreement, look_at_rig, silhouettes
from facelift_jax.losses import is_used
from facelift_jax.metrics import MONITOR_DEFINITIONS, nearest_input_angles
from facelift_jax.structs import Batch, Cameras

ACTIONS = ("warn", "stop")

DEFINITIONS = MONITOR_DEFINITIONS | {
    "agreement": "share of the rays through a mask that all other masks allow, of the "
    "view where it is smallest; mean over a few examples without augmentation",
    "unseen_targets": "share of these examples' targets whose camera is no input's",
    "not_taken": "share of the steps since the last line that changed nothing",
}
"""Name of each `monitor/...` -> what it is."""

BACKGROUND = 0.02  # mean error of a picture's background; an 8-bit step is .004
AGREEMENT = 0.95  # share of a view's rays; sound scenes read .99
PAINTED = 0.15  # of what is not object, opaque; a sound run reads .03
EMPTY = 0.1  # of the object, opaque
ONE_COLOR = 0.25  # contrast inside the mask over the truth's
OWN_SHARE, OWN_DROP = 0.9, 10.0  # of an input view's picture; dB without its Gaussians
GAP = 3.0  # dB between input and held-out views; sound runs have .8 to 1.5
NOT_TAKEN, LEAST_STEPS = 0.2, 10  # share of the steps; of so many at least
SAME_CAMERA = 1.0  # degrees seen from the rig's centre
PATIENCE = 2  # warm-ups; at the end of one a sound run may still be all fog
NUM_SCENES = 4  # whose masks are compared

FIGURES = (
    *(f"monitor/{name}" for name in DEFINITIONS),
    *(f"inputs/{name}" for name in ("psnr_fg", "own_view_share", "lovo_drop")),
    "held_out/psnr_fg",
)

WRONG_CAMERAS = (
    "the cameras do not belong to the pictures; no shape explains both, so each view "
    "is painted for itself: run check_data on the set"
)
OTHER_BACKGROUND = (
    "ground truth and render stand on different backgrounds, and painting frustums in "
    "that colour lowers the loss most: something changes pictures after they were put "
    "on data.background; let it change colours before, or the object alone"
)
ONE_INPUT = (
    "one input view: most of the object is seen by nobody and guessed; give data."
    "num_inputs four to six"
)
UNCHECKED = (
    "every target is an input view and no loss term compares silhouettes, so a flat "
    "picture before each camera is the best answer: raise data.min_held_out, or give "
    "loss.alpha_mse a weight"
)
INPUTS_ONLY = (
    "every target is an input view, so nothing is learned of other directions: raise "
    "data.min_held_out"
)
TOO_LARGE = (
    "gradients that are not finite, or too large for optim.skip_norm: a lower "
    "optim.learning_rate, larger batches, perceptual terms later or lighter"
)
UNKNOWN = (
    "none of the known ones (cameras, background, inputs, targets): look at the "
    "pictures and compare with the recipe as it stands"
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a symptom's cause may lie in, of a run's config.

    Attributes:
      num_inputs: views the network is given.
      has_silhouettes: whether a loss term compares silhouettes.
      patience: steps before what a network paints is judged; most begin as fog.
    """

    num_inputs: int
    has_silhouettes: bool
    patience: float


class Alarm(NamedTuple):
    """A symptom by name and in words, and its likely cause."""

    name: str
    symptom: str
    cause: str


def describe(alarm: Alarm) -> str:
    """One line."""
    return f"{alarm.symptom}; likely cause: {alarm.cause}"


def describe_new(alarms: Sequence[Alarm], told: Sequence[Alarm]) -> list[str]:
    """The alarms of which the last time had none of that name."""
    names = {alarm.name for alarm in told}
    return [describe(alarm) for alarm in alarms if alarm.name not in names]


def setting_of(config: Any) -> Setting:
    """Of a whole config."""
    return Setting(
        config.data.num_inputs,
        is_used(config.loss.alpha_mse),
        PATIENCE * config.optim.warmup_steps,
    )


def look_at(source: Source, options: DataOptions) -> dict[str, float]:
    """`monitor/agreement` and `monitor/unseen_targets` of a few training examples.

    Augmentation, which is to disturb inputs, is left out. NaN where there is nothing to
    compare.
    """
    plain = {"target_size": options.input_size, "grid_distortion": 0.0}
    options = dataclasses.replace(options, **plain, camera_jitter=0.0)
    shares, unseen = [], []
    for index in range(0, len(source), math.ceil(len(source) / NUM_SCENES)):
        try:
            example = training_example(
                source[index], np.random.default_rng(index), options
            )
            targets, inputs = jax.tree.map(
                lambda x: x[None], (example.targets.cameras, example.inputs.cameras)
            )
            unseen.append((nearest_input_angles(targets, inputs) > SAME_CAMERA).mean())
            shares.append(_smallest_share(example))
        except DataError:
            continue  # training counts the scenes that it cannot use
    found = {"agreement": shares, "unseen_targets": unseen}
    return {
        f"monitor/{name}": float(np.mean(values)) if values else math.nan
        for name, values in found.items()
    }


def _smallest_share(example: Batch) -> float:
    """Share of a view's rays with a place that no other mask forbids; the least.

    Raises:
      DataError: the views that show something are no rig.
    """
    parts = (
        (x.masks, x.cameras.viewmats, x.cameras.Ks)
        for x in (example.inputs, example.targets)
    )
    masks, viewmats, Ks = map(np.concatenate, zip(*parts, strict=True))
    alphas = np.rint(255 * masks[..., 0]).astype(np.uint8)
    shown = alphas.max(axis=(1, 2)) > 127
    size = example.inputs.cameras.width
    rig = look_at_rig(Cameras(viewmats[shown], Ks[shown], size, size))
    return agreement(silhouettes(alphas[shown]), rig).shares.min()


def find_alarms(
    step: int, figures: Mapping[str, float], setting: Setting
) -> list[Alarm]:
    """What is wrong with a run at `step`, by the latest value of every figure.

    Figures that are not known yet are not judged.
    """
    known = {name: figures.get(name, math.nan) for name in FIGURES}
    alarms = _mistakes(known)
    causes = [alarm.cause for alarm in alarms] + _choices(known, setting)
    cause = "; also: ".join(causes) or UNKNOWN
    symptoms = _against_unseen(known, setting)
    if step >= setting.patience:
        symptoms |= _painted(known)
    alarms += [Alarm(name, text, cause) for name, text in symptoms.items()]
    if known["monitor/not_taken"] > NOT_TAKEN:
        what = f"{known['monitor/not_taken']:.0%} of the latest steps were not taken"
        alarms.append(Alarm("not_taken", what, TOO_LARGE))
    return alarms


def _mistakes(known: Mapping[str, float]) -> list[Alarm]:
    """Data that nothing right can be learned from: symptom and cause at once."""
    alarms = []
    share, error = known["monitor/agreement"], known["monitor/background_error"]
    if share < AGREEMENT:
        what = (
            f"only {share:.0%} of the object's pixels in the worst view have a place "
            "in the world that no other mask forbids"
        )
        alarms.append(Alarm("cameras", what, WRONG_CAMERAS))
    if error > BACKGROUND:
        what = f"the pictures' background is {error:.2f} from the one rendered on"
        alarms.append(Alarm("background", what, OTHER_BACKGROUND))
    return alarms


def _choices(known: Mapping[str, float], setting: Setting) -> list[str]:
    """Settings that are known to make flat pictures."""
    causes = []
    if setting.num_inputs == 1:
        causes.append(ONE_INPUT)
    if known["monitor/unseen_targets"] == 0:
        causes.append(INPUTS_ONLY if setting.has_silhouettes else UNCHECKED)
    return causes


def _against_unseen(known: Mapping[str, float], setting: Setting) -> dict[str, str]:
    """Symptoms that an evaluation shows."""
    symptoms = {}
    share, drop = known["inputs/own_view_share"], known["inputs/lovo_drop"]
    if setting.num_inputs > 1 and share >= OWN_SHARE and drop >= OWN_DROP:
        symptoms["flat"] = (
            f"flat pictures: {share:.0%} of what an input camera shows was painted by "
            f"its own view, and {drop:.1f} dB of it go with those Gaussians"
        )
    inputs, held_out = known["inputs/psnr_fg"], known["held_out/psnr_fg"]
    if inputs - held_out >= GAP:
        symptoms["gap"] = (
            f"psnr_fg {inputs:.1f} dB from the input cameras, {held_out:.1f} dB from "
            "cameras no input stands at"
        )
    return symptoms


def _painted(known: Mapping[str, float]) -> dict[str, str]:
    """Symptoms of what is painted, for runs that have had time to clear up."""
    symptoms = {}
    coverage, truth = known["monitor/coverage"], known["monitor/coverage_truth"]
    least, most = coverage_limits(truth)
    if coverage > most:
        symptoms["frustums"] = (
            f"mean opacity {coverage:.2f} where the object covers {truth:.2f} of the "
            "picture: frustums are filled"
        )
    elif coverage < least:
        symptoms["nothing"] = (
            f"mean opacity {coverage:.4f} where the object covers {truth:.2f} of the "
            "picture: nothing is drawn"
        )
    elif known["monitor/contrast"] < contrast_limit(known["monitor/contrast_truth"]):
        symptoms["blob"] = (
            f"a blob of one colour: contrast {known['monitor/contrast']:.3f}, of the "
            f"truth {known['monitor/contrast_truth']:.3f}"
        )
    return symptoms


def coverage_limits(truth: float) -> tuple[float, float]:
    """The coverages between which a run may be, by the truth's."""
    return EMPTY * truth, truth + PAINTED * (1 - truth)


def contrast_limit(truth: float) -> float:
    """The least contrast a run may have, by the truth's."""
    return ONE_COLOR * truth
