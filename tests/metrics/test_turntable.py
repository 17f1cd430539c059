"""Turntable metrics against closed forms."""

import numpy as np
import pytest

from facelift_jax.geometry.paths import fov_intrinsics, orbit_cameras, turntable_cameras
from facelift_jax.geometry.rays import ray_directions
from facelift_jax.metrics import TURNTABLE_DEFINITIONS, turntable_metrics
from facelift_jax.metrics.turntable import frame_changes, is_even, rhythm, warp_error
from facelift_jax.structs import Cameras, RenderOutput

SIZE, BALL = 64, 0.5


def rig(azimuths, elevations=20.0) -> Cameras:
    azimuths = np.array(azimuths, float)
    elevations = np.broadcast_to(elevations, azimuths.shape)
    K = fov_intrinsics(50.0, SIZE)
    return orbit_cameras(azimuths, elevations, 2.0, K, SIZE)


INPUTS = rig(np.arange(6) * 60.0)


def ball_frames(shades) -> tuple[RenderOutput, Cameras]:
    """A turn around a ball at the origin, with one shade of gray per frame."""
    shades = np.array(shades, np.float32)
    cameras = turntable_cameras(INPUTS, len(shades), SIZE)
    directions = ray_directions(cameras).astype(np.float64)
    origins = cameras.centers.astype(np.float64)[:, None, None]
    along = (origins * directions).sum(-1)
    root = along**2 - (origins**2).sum(-1) + BALL**2
    alphas = (root > 0)[..., None].astype(np.float32)
    distances = -along - np.sqrt(np.maximum(root, 0))
    forward = cameras.viewmats[:, None, None, 2, :3]
    depths = alphas * (distances * (directions * forward).sum(-1))[..., None]
    colors = np.ones((*alphas.shape[:3], 3), np.float32)
    colors = np.where(alphas > 0, shades[:, None, None, None], colors)
    frames = RenderOutput(colors, alphas, depths, np.zeros(len(shades), np.int32))
    return frames, cameras


def test_a_still_ball_changes_nothing():
    frames, cameras = ball_frames(np.full(40, 0.5))
    metrics = turntable_metrics(frames, cameras, INPUTS, BALL)
    assert metrics.keys() == TURNTABLE_DEFINITIONS.keys()
    np.testing.assert_allclose(frame_changes(frames), 0, atol=1e-4)
    assert metrics["warp_error"] < 3e-3  # rim pixels mix with the background
    assert metrics["warp_share"] > 0.9  # points near the limb disappear


def test_the_warp_error_is_the_change_of_shade():
    frames, cameras = ball_frames(np.tile([0.25, 0.5], 20))
    error, share = warp_error(frames, cameras, BALL)
    assert error == pytest.approx(0.25, abs=0.01)
    assert share > 0.9


def test_points_hidden_in_the_next_frame_are_not_compared():
    frames, cameras = ball_frames(np.full(40, 0.5))
    depths = np.array(frames.depths)
    depths[1::2] -= 0.1 * BALL  # points are hidden, or far in front
    moved = RenderOutput(frames.colors, frames.alphas, depths, frames.dropped)
    assert warp_error(moved, cameras, BALL)[1] < 0.2


def test_changes_of_constant_images_depend_on_their_means():
    """SSIM of constants: (2 a b + C1) / (a^2 + b^2 + C1)."""
    frames, _ = ball_frames(np.full(4, 0.5))
    shades = np.array([0.3, 0.6, 0.6, 0.9], np.float32)[:, None, None, None]
    plain = RenderOutput(
        np.broadcast_to(shades, frames.colors.shape), 1 + 0 * frames.alphas, 0, 0
    )
    pairs = np.array([(0.3, 0.6), (0.6, 0.6), (0.6, 0.9), (0.9, 0.3)]).T
    expected = 1 - (2 * pairs.prod(0) + 1e-4) / ((pairs**2).sum(0) + 1e-4)
    np.testing.assert_allclose(frame_changes(plain), expected, atol=1e-3)


def test_vps_is_the_largest_over_the_median_change(monkeypatch):
    frames, cameras = ball_frames(np.full(40, 0.5))
    changes = np.full(40, 0.1)
    changes[7] = 0.7
    monkeypatch.setattr(
        "facelift_jax.metrics.turntable.frame_changes", lambda _: changes
    )
    metrics = turntable_metrics(frames, cameras, INPUTS, BALL)
    assert metrics["vps"] == pytest.approx(7)


def test_rhythm_is_the_energy_at_harmonics_of_the_number_of_views():
    turn = np.arange(120) / 120 * 2 * np.pi
    assert rhythm(3 + np.cos(6 * turn + 1), 6) == pytest.approx(1)
    assert rhythm(3 + np.cos(12 * turn) + 2 * np.sin(18 * turn), 6) == pytest.approx(1)
    assert rhythm(3 + np.cos(5 * turn), 6) == pytest.approx(0, abs=1e-12)
    assert rhythm(np.cos(6 * turn) + 2 * np.cos(7 * turn), 6) == pytest.approx(0.2)
    # the fourth and tenth harmonics do not count
    assert rhythm(np.cos(24 * turn) + np.cos(6 * turn), 6) == pytest.approx(0.5)
    assert rhythm(np.cos(60 * turn) + np.cos(6 * turn), 6) == pytest.approx(1 / 3)


def test_rhythm_is_undefined_without_change_or_enough_frames():
    assert np.isnan(rhythm(np.ones(120), 6))
    assert np.isnan(rhythm(np.arange(36.0), 6))
    assert not np.isnan(rhythm(np.arange(37.0), 6))


def test_only_even_rigs_have_a_rhythm():
    frames, cameras = ball_frames(0.5 + 0.3 * np.cos(np.arange(40) * np.pi / 5))
    assert turntable_metrics(frames, cameras, INPUTS, BALL)["p6"] >= 0
    uneven = rig([-147, 34, 86, -11, 144, -64])
    assert np.isnan(turntable_metrics(frames, cameras, uneven, BALL)["p6"])
    assert is_even(rig([3, 118, 242]))
    assert is_even(rig([10, 130, 250], [11.0, 20.0, 31.0]))
    assert not is_even(rig([0, 110, 240]))
    assert not is_even(rig([0, 180]))


def test_empty_frames_are_undefined():
    frames, cameras = ball_frames(np.full(40, 0.5))
    empty = RenderOutput(
        np.ones_like(frames.colors), 0 * frames.alphas, 0 * frames.depths, 0
    )
    metrics = turntable_metrics(empty, cameras, INPUTS, BALL)
    assert np.isnan(list(metrics.values())).all()
