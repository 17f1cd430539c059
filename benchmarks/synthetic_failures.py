"""Four synthetic predictions with known quality, and every metric of each.

    python -m benchmarks.synthetic_failures --images sheets

`perfect`: opaque splats all over the posed mesh in its true colors; each belongs to
one of the input views that see it. `billboards`: each input image on an opaque plane
that fills its camera's frustum at .3 of its distance, as a network paints them if only
its input views are supervised. `blob`: a soft ball in the object's mean color.
`random`: random Gaussians.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from facelift_jax.builders import make_renderer
from facelift_jax.data import rodent
from facelift_jax.data.options import DataOptions
from facelift_jax.data.rodent.asset import load_rodent
from facelift_jax.data.rodent.pose import pose_mesh
from facelift_jax.data.rodent.raycast import Hits
from facelift_jax.data.rodent.render import colors_at, prepare_subject
from facelift_jax.data.rodent.surface import surface_at
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.evaluator import evaluate
from facelift_jax.evaluation.ground_truth import GroundTruth, scene_ground_truth
from facelift_jax.evaluation.results import Evaluation
from facelift_jax.evaluation.steps import (
    evaluate_gaussians,
    make_shape_step,
    make_turntable,
)
from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.geometry.rays import unproject
from facelift_jax.io import command
from facelift_jax.structs import Batch, Gaussians, RenderFn, Views

BILLBOARD_DEPTH = 0.3  # of the camera's distance
NUM_CORRECTIONS = 8  # of the billboards' colors, for the blur of the splats
OPTICAL_DEPTH = 8.0  # of one side of the perfect surface
LIFT = 4e-3  # world units from the skin to the origin of a visibility ray


class Prediction(NamedTuple):
    """Gaussians [n] and the input view each comes from [n], -1 for none."""

    gaussians: Gaussians
    source_views: np.ndarray


def perfect(inputs: Views, truth: GroundTruth, render_fn: RenderFn) -> Prediction:
    """Splats all over the mesh, one for each pixel of the input images."""
    del render_fn
    parameters, world = truth.parameters, truth.world
    mesh = pose_mesh(load_rodent(), parameters["pose"])
    subject = prepare_subject(mesh, parameters["coat"], parameters["light"])
    corners = mesh.vertices[subject.faces].astype(np.float64)
    sides = corners[:, 1:] - corners[:, :1]
    areas = 0.5 * np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1)
    num = inputs.masks.size
    rng = np.random.default_rng(0)
    triangles = rng.choice(len(areas), num, p=areas / areas.sum()).astype(np.int32)
    u, v = rng.random((2, num)).astype(np.float32)
    u, v = np.where(u + v > 1, (1 - u, 1 - v), (u, v))
    points = corners[triangles, 0] + u[:, None] * sides[triangles, 0]
    points += v[:, None] * sides[triangles, 1]

    hits = Hits(triangles, u, v, np.ones(num, np.float32))
    normals = surface_at(subject.table, subject.faces, hits).normals
    cameras = inputs.cameras
    eyes = world.inverse().apply(np.asarray(cameras.centers))
    pixel = np.linalg.norm(eyes, axis=-1).mean() / cameras.Ks[0, 0, 0]
    size = np.full(num, 0.5 * pixel, np.float32)
    colors = colors_at(subject, hits, -normals, size)
    seen = [
        subject.caster.is_unoccluded(points + LIFT * normals, eye - points)
        & (((eye - points) * normals).sum(-1) > 0)
        for eye in eyes
    ]
    chance = rng.random((len(eyes), num)) * np.stack(seen)
    sources = np.where(chance.any(0), chance.argmax(0), -1)
    sigma = 0.7 * np.sqrt(areas.sum() / num)  # splats overlap
    # optical depth of one side, seen head-on, with the blur of the renderer
    blurred = 2 * np.pi * (sigma**2 + 0.3 * pixel**2)
    opacity = OPTICAL_DEPTH * areas.sum() / (num * blurred)
    means = world.apply(points)
    return _prediction(means, world.scale * sigma, opacity, colors, sources)


def billboards(inputs: Views, truth: GroundTruth, render_fn: RenderFn) -> Prediction:
    """A splat for every pixel of every input image, near its camera."""
    del truth
    cameras = inputs.cameras
    v, height, width = inputs.images.shape[:3]
    depths = BILLBOARD_DEPTH * np.linalg.norm(cameras.centers, axis=-1)
    planes = np.broadcast_to(
        depths[:, None, None, None].astype(np.float32), (v, height, width, 1)
    )
    means = np.asarray(unproject(cameras, planes)).reshape(-1, 3)
    sigma = 0.1 * np.repeat(depths / cameras.Ks[:, 0, 0], height * width)[:, None]
    sources = np.repeat(np.arange(v), height * width)
    jitted, colors = jax.jit(render_fn), np.asarray(inputs.images)
    for _ in range(NUM_CORRECTIONS):  # van Cittert's iteration
        prediction = _prediction(means, sigma, 1.0, colors.reshape(-1, 3), sources)
        rendered = np.asarray(jitted(prediction.gaussians, cameras).colors)
        colors = colors + (inputs.images - rendered)
    return _prediction(means, sigma, 1.0, colors.reshape(-1, 3), sources)


def blob(inputs: Views, truth: GroundTruth, render_fn: RenderFn) -> Prediction:
    """A soft ball in the mean color of the object."""
    del render_fn
    rng = np.random.default_rng(0)
    num, sources = inputs.masks.size, _dealt_out(inputs)
    means = truth.world.apply(0.3 * rng.normal(size=(num, 3)))
    color = inputs.images[inputs.masks[..., 0] > 0.5].mean(0)
    colors = np.broadcast_to(color, (num, 3))
    return _prediction(means, 0.1 * truth.world.scale, 0.03, colors, sources)


def random_gaussians(
    inputs: Views, truth: GroundTruth, render_fn: RenderFn
) -> Prediction:
    """Gaussians of random places, sizes, opacities and colors."""
    del render_fn
    rng = np.random.default_rng(0)
    num, sources = inputs.masks.size, _dealt_out(inputs)
    means = truth.world.apply(rng.uniform(-1, 1, (num, 3)))
    scales = truth.world.scale * np.exp(rng.uniform(-6, -3, (num, 3)))
    return _prediction(means, scales, rng.random(num), rng.random((num, 3)), sources)


CASES: dict[str, Callable[[Views, GroundTruth, RenderFn], Prediction]] = {
    "perfect": perfect,
    "billboards": billboards,
    "blob": blob,
    "random": random_gaussians,
}


def evaluate_all(
    path: Path, size: int, num_frames: int, image_dir: Path | None = None
) -> dict[str, Evaluation]:
    """Evaluates each case on a rodent set, like the predictions of a network.

    Sheets of the first scene are written to one folder per case in `image_dir`.
    """
    options = DataOptions(input_size=size, target_size=size)
    render_fn = make_renderer(options.background)
    source = open_source(path)
    turn = make_turntable(render_fn, num_frames)
    shape_step = make_shape_step(render_fn, turn)

    @jax.jit
    def jitted(gaussians: Gaussians, sources: Any, batch: Batch):
        return evaluate_gaussians(render_fn, gaussians, sources, batch)

    def step(predict: Callable[..., Prediction], batch: Batch):
        truth = scene_ground_truth(source[int(batch.scene_id[0])], options)
        assert truth is not None, "a rodent set"
        inputs = jax.tree.map(lambda x: x[0], batch.inputs)
        prediction = predict(inputs, truth, render_fn)
        gaussians = jax.tree.map(lambda x: x[None], prediction.gaussians)
        return gaussians, jitted(gaussians, prediction.source_views, batch)

    return {
        name: evaluate(
            step,
            predict,
            source,
            options,
            num_image_scenes=1,
            image_dir=image_dir and image_dir / name,
            shape_step=shape_step,
        )
        for name, predict in CASES.items()
    }


def table(evaluations: dict[str, Evaluation]) -> str:
    """Every metric of each case as Markdown."""
    num_columns = len(evaluations) + 1
    lines = [f"| | {' | '.join(evaluations)} |", "|---" * num_columns + "|"]
    for metric in next(iter(evaluations.values())).metrics:
        values = [f"{x.metrics[metric]:.4g}" for x in evaluations.values()]
        lines.append(f"| {metric} | {' | '.join(values)} |")
    return "\n".join(lines)


def parse(arguments: list[str]):
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m benchmarks.synthetic_failures", description=__doc__
    )
    parser.add_argument("--size", type=int, default=96, help="side of images, pixels")
    parser.add_argument("--scenes", type=int, default=1, help="number of rodents")
    parser.add_argument("--frames", type=int, default=40, help="of the turntable")
    parser.add_argument("--images", type=Path, help="folder for image sheets")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    flags = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rodent.generate(folder, flags.scenes, flags.size)
        evaluations = evaluate_all(Path(folder), flags.size, flags.frames, flags.images)
    print(table(evaluations))


def _dealt_out(inputs: Views) -> np.ndarray:
    """Assigns the Gaussians to the input views in turn."""
    return np.arange(inputs.masks.size) % len(inputs.masks)


def _prediction(
    means: np.ndarray, scales: Any, opacities: Any, colors: np.ndarray, sources: Any
) -> Prediction:
    num = len(means)
    gaussians = Gaussians(
        means=means.astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (num, 1)),
        scales=np.broadcast_to(scales, (num, 3)).astype(np.float32),
        opacities=np.broadcast_to(opacities, num).astype(np.float32),
        sh=((colors - 0.5) / SH_C0).astype(np.float32)[:, None],
    )
    return Prediction(gaussians, sources)


if __name__ == "__main__":
    command.run("synthetic_failures", main)
