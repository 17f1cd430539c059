"""Steps that every evaluation shares: from the Gaussians of a scene to its metrics.

`make_eval_step` and `make_hull_step` compute the metrics of every scene.
`make_shape_step` computes the slow metrics, which take as long as all others together.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from facelift_jax.data.options import DataOptions
from facelift_jax.data.scenes import Scene, StoredScene
from facelift_jax.evaluation.ground_truth import scene_ground_truth
from facelift_jax.geometry.numerics import Array
from facelift_jax.geometry.paths import turntable_cameras
from facelift_jax.metrics import (
    average_views,
    blend_weights,
    gaussian_health,
    nearest_input_angles,
    object_radius,
    own_view_metrics,
    surface_metrics,
    turntable_metrics,
    view_metrics,
)
from facelift_jax.reconstruction import refine_hull
from facelift_jax.render.path import render_path
from facelift_jax.structs import (
    Batch,
    Cameras,
    Gaussians,
    RefineFn,
    RenderFn,
    RenderOutput,
)

MIN_TURNTABLE = 128  # px; turntables of smaller input images have this size


class SceneOutputs(NamedTuple):
    """Renderings and metrics of scenes [b] at t cameras, the first v of them inputs.

    Attributes:
      output: renderings over [b t].
      view_metrics: `metrics.view_metrics`, [b t].
      angles: [b t] degrees to the nearest input view.
      own_view_metrics: `metrics.own_view_metrics`, [b v]; {} if no Gaussian belongs to
        a view.
      health: `metrics.gaussian_health`, [b].
      radius: [b] radius of the object, world units.
    """

    output: RenderOutput
    view_metrics: dict[str, Any]
    angles: Any
    own_view_metrics: dict[str, Any]
    health: dict[str, Any]
    radius: Any


EvalStep = Callable[[Any, Batch], tuple[Gaussians, SceneOutputs]]
ShapeStep = Callable[
    [Gaussians, Batch, Scene | StoredScene, DataOptions, float], dict[str, float]
]
Turntable = Callable[[Gaussians, Cameras], tuple[RenderOutput, Cameras]]


def make_eval_step(
    model: Any,
    render_fn: RenderFn,
    refine_fn: RefineFn,
    num_refine_steps: int = 0,
    lpips: Any = None,
) -> EvalStep:
    """Jitted (params, batch) -> (the network's Gaussians, their outputs).

    The Gaussians are refined on the input views by `num_refine_steps` gradient steps;
    with 0 steps they are not refined. `lpips` are the parameters of LPIPS; without them
    it is not computed.
    """

    @jax.jit
    def eval_step(lpips: Any, params: Any, batch: Batch):
        gaussians, _ = model.apply({"params": params}, batch.inputs)
        if num_refine_steps:
            gaussians = refine_fn(gaussians, batch.inputs, num_steps=num_refine_steps)
        sources = model.source_views(*batch.inputs.images.shape[1:3])
        return gaussians, evaluate_gaussians(
            render_fn, gaussians, sources, batch, lpips
        )

    return functools.partial(eval_step, jax.device_put(lpips))


def make_hull_step(
    render_fn: RenderFn,
    refine_fn: RefineFn,
    num_refine_steps: int = 0,
    lpips: Any = None,
) -> EvalStep:
    """(unused, batch of one scene) -> (`refine_hull` of it, its outputs).

    Without steps of refinement this is the visual hull. `lpips` as in `make_eval_step`.
    """
    lpips = jax.device_put(lpips)

    def hull_step(params: Any, batch: Batch):
        del params
        inputs = jax.tree.map(lambda x: x[0], batch.inputs)
        hull = refine_hull(inputs, refine_fn, num_refine_steps)
        gaussians = jax.tree.map(lambda x: x[None], hull)
        return gaussians, evaluate_gaussians(render_fn, gaussians, None, batch, lpips)

    return hull_step


@functools.partial(jax.jit, static_argnames="render_fn")
def evaluate_gaussians(
    render_fn: RenderFn,
    gaussians: Gaussians,
    sources: Array | None,
    batch: Batch,
    lpips: Any = None,
) -> SceneOutputs:
    """Renderings and metrics of Gaussians [b n] predicted for a batch.

    `sources` [n] is the input view each Gaussian comes from, -1 for none; None if no
    Gaussian comes from a view, as for a hull. `lpips` as in `make_eval_step`. Jitted:
    all steps of an evaluation share what is compiled for a `render_fn`.
    """
    targets, num_inputs = batch.targets, batch.inputs.images.shape[1]
    output = render_fn(gaussians, targets.cameras)
    radius = object_radius(targets)
    inputs, rendered = jax.tree.map(lambda x: x[:, :num_inputs], (targets, output))
    own_view = {}
    if sources is not None:
        own_view = own_view_metrics(
            render_fn, gaussians, sources, inputs, rendered, radius
        )
    return SceneOutputs(
        output,
        view_metrics(output, targets, radius, lpips),
        nearest_input_angles(targets.cameras, inputs.cameras),
        own_view,
        gaussian_health(gaussians),
        radius,
    )


def scene_metrics(
    outputs: SceneOutputs, num_inputs: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Metrics of the only scene in `outputs`, and how many views each leaves out.

    `inputs/...` and `held_out/...` are means over these views; `health/...` depend on
    the Gaussians alone.
    """
    per_view, own_view, health = (
        {name: np.asarray(values)[0] for name, values in group.items()}
        for group in (outputs.view_metrics, outputs.own_view_metrics, outputs.health)
    )
    metrics, undefined = average_views(per_view, num_inputs)
    own_view, own_view_undefined = average_views(own_view, num_inputs)
    metrics |= own_view | {f"health/{name}": float(x) for name, x in health.items()}
    return metrics, undefined | own_view_undefined


def require_nothing_dropped(name: str, output: RenderOutput) -> None:
    """Refuses renderings that lack some of a scene's Gaussians.

    Raises:
      ValueError: the renderer dropped list entries (an explicit cap).
    """
    dropped = int(output.dropped.sum())
    if dropped:
        raise ValueError(
            f"scene {name}: the renderer dropped {dropped} list entries, so its images "
            "are incomplete; raise or remove max_entries"
        )


def make_shape_step(
    render_fn: RenderFn, turn: Turntable, with_true_turntable: bool = True
) -> ShapeStep:
    """(Gaussians [n], batch of their scene, the scene, options, radius) -> metrics.

    `turntable/...` are computed from the frames of `turn`. If the scene has a
    ground-truth mesh, `surface/...` compare the Gaussians with it, and
    `true_turntable/...` are the turntable metrics of the ground truth, which do not
    depend on the Gaussians.
    """

    def shape_step(
        gaussians: Gaussians,
        batch: Batch,
        scene: Scene | StoredScene,
        options: DataOptions,
        radius: float,
    ) -> dict[str, float]:
        metrics, truth = {}, scene_ground_truth(scene, options)
        inputs = jax.tree.map(lambda x: x[0], batch.inputs.cameras)
        frames, cameras = turn(gaussians, inputs)
        around = (cameras, inputs, radius)
        metrics["turntable"] = turntable_metrics(frames, *around)
        if truth is not None and with_true_turntable:
            frames = truth.render(cameras, options.background)
            metrics["true_turntable"] = turntable_metrics(frames, *around)
        if truth is not None:
            batched = jax.tree.map(lambda x: x[None], gaussians)
            weights = blend_weights(render_fn, batched, batch.targets.cameras)
            weights = np.asarray(weights)[0]
            mesh = (truth.vertices, truth.faces)
            means = np.asarray(gaussians.means)
            metrics["surface"] = surface_metrics(means, weights, *mesh)
        return {
            f"{kind}/{name}": value
            for kind, group in metrics.items()
            for name, value in group.items()
        }

    return shape_step


def make_turntable(render_fn: RenderFn, num_frames: int) -> Turntable:
    """(Gaussians [n], input cameras [v]) -> NumPy frames of one turn, their cameras."""
    jitted = jax.jit(render_fn)

    def turn(gaussians: Gaussians, inputs: Cameras) -> tuple[RenderOutput, Cameras]:
        size = max(MIN_TURNTABLE, inputs.width)
        cameras = turntable_cameras(inputs, num_frames, size)
        return render_path(jitted, gaussians, cameras), cameras

    return turn
