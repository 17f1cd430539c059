"""Coats: the colors of fur, skin, tail and eyes as procedural 3D textures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from facelift_jax.data.rodent.noise import value_noise
from facelift_jax.data.rodent.surface import Surface

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Coat:
    """Linear-light colors of hair base, hair tip and belly, and how common it is."""

    base: Rgb
    tip: Rgb
    belly: Rgb
    share: float  # fraction of all animals


COATS = {
    "black": Coat(
        (0.028, 0.025, 0.023), (0.075, 0.065, 0.058), (0.05, 0.045, 0.04), 0.27
    ),
    "agouti": Coat((0.10, 0.070, 0.042), (0.30, 0.21, 0.12), (0.36, 0.31, 0.25), 0.2),
    "grey": Coat((0.13, 0.125, 0.12), (0.27, 0.26, 0.25), (0.36, 0.35, 0.34), 0.17),
    "brown": Coat(
        (0.075, 0.042, 0.024), (0.19, 0.115, 0.066), (0.22, 0.16, 0.11), 0.12
    ),
    "cream": Coat((0.27, 0.20, 0.125), (0.44, 0.35, 0.235), (0.44, 0.395, 0.335), 0.08),
    "white": Coat((0.29, 0.28, 0.265), (0.44, 0.425, 0.405), (0.41, 0.40, 0.385), 0.16),
}
PATCHED_SHARE = 0.25
PINK = (0.56, 0.30, 0.25)
TAIL = (0.40, 0.25, 0.21)
DARK_EYE = (0.012, 0.010, 0.010)
ALBINO_EYE = (0.22, 0.03, 0.03)

# Strands are noise stretched along the body: cells per body length along and across.
_COARSE, _FINE, _FINEST = (22.0, 95.0), (46.0, 210.0), (90.0, 430.0)
_TAIL_RING_RADIANS = 260  # per body length: about 41 rings


def sample_coat(rng: np.random.Generator) -> dict[str, Any]:
    """Random coat parameters as JSON values."""
    names = list(COATS)
    name = names[rng.choice(len(names), p=[coat.share for coat in COATS.values()])]
    is_patched = rng.random() < PATCHED_SHARE and name != "white"
    return {
        "coat": name,
        "patch_coat": "white" if is_patched else None,
        "patch_offset": rng.uniform(0, 64, 3).tolist(),
        "patch_threshold": rng.uniform(-0.15, 0.25),
        "brightness": rng.uniform(0.8, 1.25),
        "strand_density": rng.uniform(0.8, 1.25),
        "skin_brightness": rng.uniform(0.8, 1.15),
        "relief": rng.uniform(0.35, 0.6),
    }


@dataclass(frozen=True)
class Strands:
    """Height of the fur strands at n points.

    Attributes:
      coarse, fine: [n] heights, about -1 to 1.
      ring_share: [n] in [0, 1], how well the samples resolve the rings of the tail.
    """

    coarse: np.ndarray
    fine: np.ndarray
    ring_share: np.ndarray


def strands(
    surface: Surface, coat: dict[str, Any], sample_size: Float[np.ndarray, "n"]
) -> Strands:
    """The strands as seen by samples of the given size in body lengths.

    Detail finer than the samples fades out and cannot alias, so all views show the same
    texture.
    """
    points = surface.texture * np.float32(coat["strand_density"]) + surface.sway
    fine = _streaks(points, _FINE, 1, sample_size)
    fine += 0.7 * _streaks(points, _FINEST, 2, sample_size)
    coarse = _streaks(points, _COARSE, 0, sample_size)
    ring_waves = _TAIL_RING_RADIANS / np.pi
    return Strands(coarse, fine, _resolved(sample_size, ring_waves))


def albedo(
    surface: Surface, fur: Strands, coat: dict[str, Any]
) -> Float[np.ndarray, "n 3"]:
    """Linear-light reflectance (RGB)."""
    furry = _fur_color(surface, fur, coat)
    darkness = np.clip(furry.sum(1) * np.float32(0.733) + 0.35, 0.35, 1)
    skin = np.float32(coat["skin_brightness"])
    pink = skin * (0.9 + 0.12 * (fur.coarse + surface.clumps))
    pink *= np.minimum(darkness + 0.25, 1)  # dark animals have darker skin
    rings = 0.5 + 0.5 * np.sin(surface.texture[:, 0] * _TAIL_RING_RADIANS)
    tail = skin * (1 - 0.22 * rings * fur.ring_share) * (1 + 0.15 * fur.fine)
    tail *= np.minimum(darkness + 0.1, 1)
    eye = ALBINO_EYE if coat["coat"] == "white" else DARK_EYE
    shares = surface.regions
    result = furry * shares[:, :1]
    for share, color in (
        (shares[:, 1] * pink, PINK),
        (shares[:, 2] * tail, TAIL),
        (shares[:, 3], eye),
    ):
        result += share[:, None] * np.array(color, np.float32)
    return result


def _fur_color(
    surface: Surface, fur: Strands, coat: dict[str, Any]
) -> Float[np.ndarray, "n 3"]:
    height = 0.55 * fur.coarse + 0.45 * fur.fine
    tips = np.clip(0.5 + 0.55 * height + 0.18 * surface.clumps, 0, 1)[:, None]
    base, tip, belly = _colors(coat["coat"])
    below = surface.belly[:, None]
    color = (base + (tip - base) * tips) * (1 - below)
    color += belly * ((0.75 + 0.35 * tips) * below)
    if coat["patch_coat"]:
        base, tip, _ = _colors(coat["patch_coat"])
        edge = surface.patch_noise + 0.25 * surface.clumps + 0.05 * height
        edge = np.clip((edge - np.float32(coat["patch_threshold"])) * 9, 0, 1)[:, None]
        color += (base + (tip - base) * tips - color) * edge
    return color * np.float32(coat["brightness"])


def _colors(name: str) -> Float[np.ndarray, "3 3"]:
    coat = COATS[name]
    return np.array([coat.base, coat.tip, coat.belly], np.float32)


def _streaks(
    points: Float[np.ndarray, "n 3"],
    waves: tuple[float, float],
    channel: int,
    sample_size: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n"]:
    along, across = waves
    resolved = _resolved(sample_size, across)
    if not resolved.any():
        return resolved
    cells = np.array([along, across, across], np.float32)
    return resolved * value_noise(points * cells + np.float32(9 * channel), channel)


def _resolved(
    sample_size: Float[np.ndarray, "n"], waves: float
) -> Float[np.ndarray, "n"]:
    """1 where samples are much smaller than 1 / waves, 0 where they are larger."""
    return np.clip(1.6 - np.float32(1.6 * waves) * sample_size, 0, 1)
