"""Compositing, cropping and resizing keep pixels and intrinsics consistent."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_scenes import write_scene

from facelift_jax.data.io import DataError
from facelift_jax.data.resize import composite, crop, resize, to_views
from facelift_jax.data.scenes import open_source
from facelift_jax.structs import Cameras, Views, check

GOLDEN = np.load(Path(__file__).parent.parent / "goldens" / "data" / "lgm.npz")
WHITE = (1.0, 1.0, 1.0)


def ramps(width, height):
    """Views whose red is the column and whose green the row of each pixel center."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    image = np.stack([columns, rows, columns], -1)[None].astype(np.float32)
    K = np.float32([[1.3 * width, 0, 0.4 * width], [0, width, 0.6 * height], [0, 0, 1]])
    cameras = Cameras(np.eye(4, dtype=np.float32)[None], K[None], width, height)
    return Views(image, image[..., :1], image[..., 1:2], cameras)


def assert_pixels_keep_their_rays(before, after, margin, tolerance=2e-4):
    """The ray of every new pixel meets the old image at the position in its color."""
    height, width = after.images.shape[1:3]
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([columns, rows, np.ones_like(rows)], -1)
    K, old = (np.float64(v.cameras.Ks[0]) for v in (after, before))
    place = (rays @ np.linalg.inv(K).T @ old.T)[..., :2]
    inside = (slice(margin, height - margin), slice(margin, width - margin))
    actual = after.images[0, ..., :2]
    np.testing.assert_allclose(actual[inside], place[inside], atol=tolerance)


# Old pixels. Means over whole pixels and bilinear sampling keep a ramp to rounding; an
# area that ends inside old pixels, each of one color, shifts its center by up to 1/12.
SIZES = {(20, 15): 2e-4, (10, 10): 2e-4, (80, 90): 2e-4, (32, 24): 0.09, (27, 11): 0.09}


@pytest.mark.parametrize("size", SIZES)
def test_resizing_scales_the_intrinsics(size):
    views = ramps(40, 30)
    resized = resize(views, *size)
    check(resized)
    margin = 2 if size[0] > 40 else 0  # enlarged, the outer half pixels repeat
    assert_pixels_keep_their_rays(views, resized, margin, SIZES[size])
    # depths hold the row: the nearest is at most half an old pixel away
    rows = (np.arange(size[1]) + 0.5) * (30 / size[1])
    assert np.abs(resized.depths[0, :, 0, 0] - rows).max() <= 0.5 + 1e-5
    assert set(np.unique(resized.depths)) <= set(np.unique(views.depths))


def test_cropping_shifts_the_intrinsics():
    views = ramps(40, 30)
    cut = crop(views, 7, 4, 20, 25)
    check(cut)
    assert_pixels_keep_their_rays(views, cut, margin=0)
    np.testing.assert_array_equal(cut.depths, views.depths[:, 4:29, 7:27])
    with pytest.raises(ValueError, match=r"20 x 25 px at \(21, 4\) is not inside im"):
        crop(views, 21, 4, 20, 25)


def test_halving_equals_the_original_bilinear_resizing():
    image = GOLDEN["resize_in"].transpose(0, 2, 3, 1)
    K = np.float32([[[48, 0, 24], [0, 48, 24], [0, 0, 1]]])
    cameras = Cameras(np.eye(4, dtype=np.float32)[None], K, 48, 48)
    half = resize(Views(image, image[..., :1], None, cameras), 24, 24)
    expected = GOLDEN["resize_half"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(half.images, expected, atol=1e-6)


def test_shrinking_keeps_the_mean(scene):
    views = composite(scene.take(np.arange(2)), WHITE)
    for size in (7, 12, 23):
        small = resize(views, size, size)
        means = [v.images.mean((1, 2)) for v in (views, small)]
        np.testing.assert_allclose(means[0], means[1], atol=1e-5)


def test_compositing_hides_colors_under_zero_alpha(scene):
    taken = scene.take(np.arange(3))
    rgba = taken.rgba.copy()
    rgba[rgba[..., 3] == 0] = (255, 0, 255, 0)
    background = (0.2, 0.4, 0.6)
    expected = to_views(taken, 16, background)
    views = to_views(dataclasses.replace(taken, rgba=rgba), 16, background)
    np.testing.assert_array_equal(views.images, expected.images)
    outside = views.masks[..., 0] == 0
    assert outside.any()
    assert np.abs(views.images[outside] - np.float32(background)).max() < 1e-6
    assert views.images.dtype == views.masks.dtype == np.float32
    half = dataclasses.replace(taken, rgba=np.full_like(rgba, 51))
    colors = composite(half, background).images
    np.testing.assert_allclose(
        colors[0, 0, 0], 0.2 * 0.2 + 0.8 * np.array(background), atol=1e-6
    )


def test_cropping_to_a_square_must_keep_the_object(tmp_path):
    write_scene(tmp_path / "wide", width=36, height=24)
    wide = open_source(tmp_path / "wide")[0].take(np.arange(3))
    views = to_views(wide, 24, WHITE)
    check(views)
    np.testing.assert_array_equal(
        views.masks, wide.rgba[:, :, 6:30, 3:] / np.float32(255)
    )
    assert views.cameras.Ks[0, 0, 2] == pytest.approx(18 + 0.7 - 6)
    moved = dataclasses.replace(wide, rgba=np.roll(wide.rgba, 9, axis=2))
    with pytest.raises(DataError) as caught:
        to_views(moved, 24, WHITE)
    line = str(caught.value)
    assert line.startswith(
        f"scene wide ({tmp_path}/wide): cropping an image of 36 x 24 px to its central "
        "square removes "
    )
    assert line.endswith(
        " pixels of the object (chosen view 0); store square images around the object"
    )
