"""Four planted answers to synthetic scenes, and what every figure says of them.

    python -m benchmarks.synthetic_failures --pictures planted

`perfect`: opaque splats all over the posed mesh in its true colours; each belongs to
one of the input views that see it. `billboards`: each input picture on an opaque plane
that fills its camera's frustum at .3 of its distance, what a network collapses to if
nothing but its inputs is asked for. `blob`: a soft grey ball. `random`: anything.
"""

import sys
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
from facelift_jax.evaluation.ground_truth import Truth, scene_truth
from facelift_jax.evaluation.results import Evaluation
from facelift_jax.evaluation.steps import judge, make_shape_step, make_turntable
from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.geometry.rays import unproject
from facelift_jax.io import command
from facelift_jax.structs import Batch, Gaussians, RenderFn, Views

BILLBOARD_DEPTH = 0.3  # of the camera's distance
PAINTINGS = 8  # rounds in which the billboards' colours make up for the splats' blur
OPTICAL_DEPTH = 8.0  # of the perfect surface, one side of it
LIFT = 4e-3  # world units between the skin and rays that leave it


class Planted(NamedTuple):
    """Gaussians [n] and the input view each comes from [n], -1 for none."""

    gaussians: Gaussians
    source_views: np.ndarray


def perfect(inputs: Views, truth: Truth, render_fn: RenderFn) -> Planted:
    """Splats all over the mesh, as many as the inputs have pixels."""
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
    # squarely seen, the splats of one side, blurred by the renderer, add up to this
    blurred = 2 * np.pi * (sigma**2 + 0.3 * pixel**2)
    opacity = OPTICAL_DEPTH * areas.sum() / (num * blurred)
    means = world.apply(points)
    return _planted(means, world.scale * sigma, opacity, colors, sources)


def billboards(inputs: Views, truth: Truth, render_fn: RenderFn) -> Planted:
    """A splat for every pixel of every input picture, near its camera."""
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
    for _ in range(PAINTINGS):  # van Cittert's iteration
        found = _planted(means, sigma, 1.0, colors.reshape(-1, 3), sources)
        rendered = np.asarray(jitted(found.gaussians, cameras).colors)
        colors = colors + (inputs.images - rendered)
    return _planted(means, sigma, 1.0, colors.reshape(-1, 3), sources)


def blob(inputs: Views, truth: Truth, render_fn: RenderFn) -> Planted:
    """A soft ball in the mean colour of the object."""
    del render_fn
    rng = np.random.default_rng(0)
    num, sources = inputs.masks.size, _dealt(inputs)
    means = truth.world.apply(0.3 * rng.normal(size=(num, 3)))
    color = inputs.images[inputs.masks[..., 0] > 0.5].mean(0)
    colors = np.broadcast_to(color, (num, 3))
    return _planted(means, 0.1 * truth.world.scale, 0.03, colors, sources)


def anything(inputs: Views, truth: Truth, render_fn: RenderFn) -> Planted:
    """Gaussians of random places, sizes, opacities and colours."""
    del render_fn
    rng = np.random.default_rng(0)
    num, sources = inputs.masks.size, _dealt(inputs)
    means = truth.world.apply(rng.uniform(-1, 1, (num, 3)))
    scales = truth.world.scale * np.exp(rng.uniform(-6, -3, (num, 3)))
    return _planted(means, scales, rng.random(num), rng.random((num, 3)), sources)


SCENES: dict[str, Callable[[Views, Truth, RenderFn], Planted]] = {
    "perfect": perfect,
    "billboards": billboards,
    "blob": blob,
    "random": anything,
}


def judge_all(
    path: Path, size: int, num_frames: int, pictures: Path | None = None
) -> dict[str, Evaluation]:
    """Every planted answer to a rodent set, evaluated as a network's would be.

    Sheets of the first scene go to folders of `pictures`.
    """
    options = DataOptions(input_size=size, target_size=size)
    render_fn = make_renderer(options.background)
    source = open_source(path)
    turn = make_turntable(render_fn, num_frames)
    shape_step = make_shape_step(render_fn, turn)

    @jax.jit
    def judged(gaussians: Gaussians, sources: Any, batch: Batch):
        return judge(render_fn, gaussians, sources, batch)

    def step(plant: Callable[..., Planted], batch: Batch):
        truth = scene_truth(source[int(batch.scene_id[0])], options)
        assert truth is not None, "a rodent set"
        inputs = jax.tree.map(lambda x: x[0], batch.inputs)
        found = plant(inputs, truth, render_fn)
        gaussians = jax.tree.map(lambda x: x[None], found.gaussians)
        return gaussians, judged(gaussians, found.source_views, batch)

    return {
        name: evaluate(
            step,
            plant,
            source,
            options,
            num_picture_scenes=1,
            picture_dir=pictures and pictures / name,
            shape_step=shape_step,
        )
        for name, plant in SCENES.items()
    }


def table(found: dict[str, Evaluation]) -> str:
    """Every figure of each planted scene as Markdown."""
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    for figure in next(iter(found.values())).figures:
        values = " | ".join(f"{x.figures[figure]:.4g}" for x in found.values())
        lines.append(f"| {figure} | {values} |")
    return "\n".join(lines)


def parse(arguments: list[str]):
    """Flags of the command."""
    parser = command.Parser(
        prog="python -m benchmarks.synthetic_failures", description=__doc__
    )
    parser.add_argument("--size", type=int, default=96, help="side of pictures, pixels")
    parser.add_argument("--scenes", type=int, default=1, help="number of rodents")
    parser.add_argument("--frames", type=int, default=40, help="of the turntable")
    parser.add_argument("--pictures", type=Path, help="folder for sheets")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Prints the table."""
    flags = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rodent.generate(folder, flags.scenes, flags.size)
        found = judge_all(Path(folder), flags.size, flags.frames, flags.pictures)
    print(table(found))


def _dealt(inputs: Views) -> np.ndarray:
    """Input views dealt out in turn."""
    return np.arange(inputs.masks.size) % len(inputs.masks)


def _planted(
    means: np.ndarray, scales: Any, opacities: Any, colors: np.ndarray, sources: Any
) -> Planted:
    num = len(means)
    gaussians = Gaussians(
        means=means.astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (num, 1)),
        scales=np.broadcast_to(scales, (num, 3)).astype(np.float32),
        opacities=np.broadcast_to(opacities, num).astype(np.float32),
        sh=((colors - 0.5) / SH_C0).astype(np.float32)[:, None],
    )
    return Planted(gaussians, sources)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        command.fail("planted", error)
