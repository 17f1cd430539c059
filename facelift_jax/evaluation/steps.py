"""From one scene's Gaussians to its figures: what every evaluation shares.

`make_eval_step` and `make_hull_step` give the figures that are taken of every scene,
`make_shape_step` those that cost as much as all of them together.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.evaluation.ground_truth import scene_truth
from facelift_jax.evaluation.visual_hull import visual_hull
from facelift_jax.geometry.numerics import Array
from facelift_jax.geometry.paths import turntable_cameras
from facelift_jax.metrics import (
    blend_weights,
    gaussian_health,
    nearest_input_angles,
    object_radius,
    own_view_metrics,
    scene_figures,
    surface_metrics,
    turntable_metrics,
    view_metrics,
)
from facelift_jax.render.path import render_path
from facelift_jax.structs import Batch, Cameras, Gaussians, RenderFn, RenderOutput

MIN_TURNTABLE = 128  # px; smaller input pictures are turned at this size


class Judgement(NamedTuple):
    """Figures of scenes [b], seen from t cameras of which the first v are the inputs.

    Attributes:
      output: over [b t].
      views: `view_metrics`, [b t].
      angles: [b t] degrees to the nearest input.
      inputs: `own_view_metrics`, [b v]; {} where Gaussians come from no view.
      health: `gaussian_health`, [b].
      radius: [b] of the object, world units.
    """

    output: RenderOutput
    views: dict[str, Any]
    angles: Any
    inputs: dict[str, Any]
    health: dict[str, Any]
    radius: Any


EvalStep = Callable[[Any, Batch], tuple[Gaussians, Judgement]]
ShapeStep = Callable[
    [Gaussians, Batch, Scene | StoredScene, DataOptions, float], dict[str, float]
]
Turntable = Callable[[Gaussians, Cameras], tuple[RenderOutput, Cameras]]


def make_eval_step(model: Any, render_fn: RenderFn, lpips: Any = None) -> EvalStep:
    """Jitted (params, batch) -> (a network's Gaussians, their judgement).

    LPIPS is among the metrics where its parameters `lpips` are given.
    """

    @jax.jit
    def eval_step(lpips: Any, params: Any, batch: Batch):
        gaussians, _ = model.apply({"params": params}, batch.inputs)
        sources = model.source_views(*batch.inputs.images.shape[1:3])
        return gaussians, judge(render_fn, gaussians, sources, batch, lpips)

    return functools.partial(eval_step, jax.device_put(lpips))


def make_hull_step(render_fn: RenderFn, lpips: Any = None) -> EvalStep:
    """(anything, batch of one scene) -> (the visual hull, its judgement)."""

    @jax.jit
    def judge_hull(lpips: Any, gaussians: Gaussians, batch: Batch):
        return judge(render_fn, gaussians, None, batch, lpips)

    lpips = jax.device_put(lpips)

    def hull_step(params: Any, batch: Batch):
        del params
        hull = visual_hull(jax.tree.map(lambda x: x[0], batch.inputs))
        gaussians = jax.tree.map(lambda x: x[None], hull)
        return gaussians, judge_hull(lpips, gaussians, batch)

    return hull_step


def judge(
    render_fn: RenderFn,
    gaussians: Gaussians,
    sources: Array | None,
    batch: Batch,
    lpips: Any = None,
) -> Judgement:
    """Figures of Gaussians [b n] as an answer to a batch.

    `sources` [n] is the input view each comes from, -1 for none; or None if that means
    nothing, as for a hull. LPIPS where its parameters `lpips` are given.
    """
    targets, num_inputs = batch.targets, batch.inputs.images.shape[1]
    output = render_fn(gaussians, targets.cameras)
    radius = object_radius(targets)
    inputs, rendered = jax.tree.map(lambda x: x[:, :num_inputs], (targets, output))
    own = {}
    if sources is not None:
        own = own_view_metrics(render_fn, gaussians, sources, inputs, rendered, radius)
    return Judgement(
        output,
        view_metrics(output, targets, radius, lpips),
        nearest_input_angles(targets.cameras, inputs.cameras),
        own,
        gaussian_health(gaussians),
        radius,
    )


def scene_row(
    found: Judgement, num_inputs: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Figures of the one scene judged, and how many views each leaves out.

    `inputs/...` and `held_out/...` are means over these views; `health/...` are of the
    Gaussians alone.
    """
    views, inputs, health = (
        {name: np.asarray(values)[0] for name, values in group.items()}
        for group in (found.views, found.inputs, found.health)
    )
    figures, undefined = scene_figures(views, num_inputs)
    own, own_undefined = scene_figures(inputs, num_inputs)
    figures |= own | {f"health/{name}": float(x) for name, x in health.items()}
    return figures, undefined | own_undefined


def make_shape_step(render_fn: RenderFn, turn: Turntable | None) -> ShapeStep:
    """(Gaussians [n], batch of their scene, the scene, options, radius) -> figures.

    `turntable/...` of the frames of `turn`; where the scene's mesh is known,
    `surface/...` against it and, of its own pictures, `true_turntable/...`.
    """
    weigh = jax.jit(functools.partial(blend_weights, render_fn))

    def shape_step(
        gaussians: Gaussians,
        batch: Batch,
        scene: Scene | StoredScene,
        options: DataOptions,
        radius: float,
    ) -> dict[str, float]:
        found, truth = {}, scene_truth(scene, options)
        if turn is not None:
            inputs = jax.tree.map(lambda x: x[0], batch.inputs.cameras)
            frames, cameras = turn(gaussians, inputs)
            around = (cameras, inputs, radius)
            found["turntable"] = turntable_metrics(frames, *around)
            if truth is not None:
                frames = truth.photograph(cameras, options.background)
                found["true_turntable"] = turntable_metrics(frames, *around)
        if truth is not None:
            every = jax.tree.map(lambda x: x[None], gaussians)
            weights = np.asarray(weigh(every, batch.targets.cameras))[0]
            mesh = (truth.vertices, truth.faces)
            means = np.asarray(gaussians.means)
            found["surface"] = surface_metrics(means, weights, *mesh)
        return {f"{kind}/{k}": x for kind, row in found.items() for k, x in row.items()}

    return shape_step


def make_turntable(render_fn: RenderFn, num_frames: int) -> Turntable:
    """(Gaussians [n], input cameras [v]) -> frames of one turn, NumPy, and cameras."""
    jitted = jax.jit(render_fn)

    def turn(gaussians: Gaussians, inputs: Cameras) -> tuple[RenderOutput, Cameras]:
        size = max(MIN_TURNTABLE, inputs.width)
        cameras = turntable_cameras(inputs, num_frames, size)
        return render_path(jitted, gaussians, cameras), cameras

    return turn
