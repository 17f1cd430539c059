"""The ground truth of a synthetic scene agrees with its images."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import scipy.ndimage

from facelift_jax.builders import data_options, make_refiner
from facelift_jax.data import rodent
from facelift_jax.data.examples import evaluation_example
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.ground_truth import scene_ground_truth
from facelift_jax.evaluation.steps import (
    make_hull_step,
    make_shape_step,
    make_turntable,
    scene_metrics,
)
from facelift_jax.geometry.rays import project
from facelift_jax.metrics import (
    OWN_VIEW_DEFINITIONS,
    SURFACE_DEFINITIONS,
    TURNTABLE_DEFINITIONS,
)
from facelift_jax.reconstruction import refine_hull
from facelift_jax.render import render

SIZE = 32
OPTIONS = data_options({"input_size": SIZE, "target_size": SIZE}, 4)
render_fn = functools.partial(
    render, background=np.ones(3, np.float32), backend="reference"
)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("rodents") / "set"
    rodent.generate(path, 1, SIZE, workers=1, uneven=True, views=4)
    return open_source(path)[0]


@pytest.fixture(scope="module")
def example(scene):
    return evaluation_example(scene, OPTIONS)


def test_images_of_the_ground_truth_are_the_target_images(scene, example):
    """Through the inverse of the rig's similarity."""
    truth = scene_ground_truth(scene, OPTIONS)
    targets = example.targets
    shown = truth.render(targets.cameras, OPTIONS.background)
    # poses are rounded to float32 twice, so single samples at edges move
    assert np.abs(shown.colors - targets.images).mean() < 1e-3
    assert np.abs(shown.alphas - targets.masks).mean() < 1e-3
    both = (shown.depths > 0) & (targets.depths > 0)
    assert both.sum() > 0.99 * (targets.depths > 0).sum()
    np.testing.assert_allclose(shown.depths[both], targets.depths[both], atol=5e-3)


def test_the_mesh_projects_into_the_target_masks(scene, example):
    truth = scene_ground_truth(scene, OPTIONS)
    for view, mask in enumerate(example.targets.masks):
        camera = jax.tree.map(lambda x, i=view: x[i], example.targets.cameras)
        cols, rows = np.floor(project(camera, truth.vertices)[0]).astype(int).T
        around = scipy.ndimage.maximum_filter(mask[..., 0], 3)
        assert (around[rows, cols] > 0).mean() > 0.999


def test_other_scenes_have_no_ground_truth(scene, tmp_path):
    other = dataclasses.replace(scene, path=tmp_path)
    assert scene_ground_truth(other, OPTIONS) is None
    document = {"frames": [], "rodent": {"version": 1}}
    (tmp_path / "opencv_cameras.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"^scene scene_000000 \(.*\): rodent param"):
        scene_ground_truth(other, OPTIONS)


@pytest.mark.parametrize("num_steps", [0, 1])
def test_hulls_have_all_metrics_except_those_of_source_views(scene, example, num_steps):
    batch = jax.tree.map(lambda x: x[None], example)
    refine_fn = make_refiner(OPTIONS.background)
    hull_step = make_hull_step(render_fn, refine_fn, num_steps)
    gaussians, outputs = jax.device_get(hull_step(None, batch))
    expected = refine_hull(example.inputs, refine_fn, num_steps)
    np.testing.assert_array_equal(gaussians.means[0], expected.means)
    metrics, undefined = scene_metrics(outputs, 6)
    assert metrics["held_out/iou"] > 0.6  # a thin animal, blurred by half a pixel
    assert metrics["gap"] < 4
    assert not any(name.split("/")[1] in OWN_VIEW_DEFINITIONS for name in undefined)
    assert not any(undefined.values())
    first = jax.tree.map(lambda x: x[0], gaussians)
    turn = make_turntable(render_fn, 3)
    step = make_shape_step(render_fn, turn, with_true_turntable=False)
    shape = step(first, batch, scene, OPTIONS, float(outputs.radius[0]))
    assert shape.keys() == {
        *(f"turntable/{name}" for name in TURNTABLE_DEFINITIONS),
        *(f"surface/{name}" for name in SURFACE_DEFINITIONS),
    }
    # a pixel is .08 of the object's radius; centers to be refined are 2.5 pixels apart
    assert shape["surface/chamfer"] < (0.2 if num_steps else 0.1)
