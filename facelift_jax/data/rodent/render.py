"""Ray-casts RGBA and depth images of a posed animal."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int, UInt8

from facelift_jax.data.rodent.asset import load_rodent, vertex_normals
from facelift_jax.data.rodent.coat import strands
from facelift_jax.data.rodent.light import shade, skylight, sunlight
from facelift_jax.data.rodent.pose import PosedMesh
from facelift_jax.data.rodent.raycast import Hits, RayCaster
from facelift_jax.data.rodent.surface import (
    Surface,
    patch_noise,
    resting_fields,
    surface_at,
    vertex_table,
)
from facelift_jax.structs import Cameras

INNER_GRID = 2  # samples per pixel in x and in y, inside the silhouette
EDGE_GRID = 4  # on the silhouette, where the samples give the alpha channel
_SAMPLES_AT_ONCE = 2**14


@dataclass(frozen=True)
class Subject:
    """A posed animal with coat and light: everything that all cameras share.

    Attributes:
      mesh: the posed mesh.
      faces: [m 3] its triangles.
      caster: casts rays against it.
      table: [n k] `surface.vertex_table` of its vertices.
      coat, light: parameters.
    """

    mesh: PosedMesh
    faces: np.ndarray
    caster: RayCaster
    table: np.ndarray
    coat: dict[str, Any]
    light: dict[str, Any]


def prepare_subject(
    mesh: PosedMesh, coat: dict[str, Any], light: dict[str, Any]
) -> Subject:
    """Computes the lighting per vertex and everything else that all cameras share."""
    rodent = load_rodent()
    vertices, faces = mesh.vertices, rodent.faces
    normals = vertex_normals(vertices.astype(np.float64), faces, rodent.weld)
    normals = normals.astype(np.float32)
    caster = RayCaster(vertices, faces)
    surface = Surface(
        normals=normals,
        fur_directions=mesh.fur_directions,
        patch_noise=patch_noise(coat["patch_offset"]),
        skylight=skylight(caster, vertices, normals),
        sunlight=sunlight(caster, vertices, normals, light),
        **resting_fields(),
    )
    return Subject(mesh, faces, caster, vertex_table(surface), coat, light)


def render_image(
    subject: Subject, camera: Cameras
) -> tuple[UInt8[np.ndarray, "h w 4"], Float[np.ndarray, "h w"]]:
    """RGBA (straight alpha) and camera-z depth; both are 0 off the animal.

    Depth is float32 in world units, exact at pixel centers. Color and alpha are means
    over the pixel. Colors are averaged in sRGB, as stored, because the readers of the
    files blend stored values. `camera` has no batch axes.
    """
    rgba = np.zeros((camera.height, camera.width, 4), np.uint8)
    depth = np.zeros((camera.height, camera.width), np.float32)
    touched = _touched_pixels(subject.mesh.vertices, camera)
    near_mesh = _dilated(touched, 5)
    rows, cols = np.nonzero(_filled_box(near_mesh))
    hits = cast_pixels(subject.caster, camera, cols + 0.5, rows + 0.5)[0]
    depth[rows, cols] = np.where(hits.is_hit, hits.distances, 0)

    # Parts thinner than a pixel can miss all pixel centers; their vertices do not.
    rows, cols = np.nonzero(near_mesh | _dilated(depth > 0, 3))
    samples = np.zeros((camera.height, camera.width, 4), np.float32)
    samples[rows, cols] = _sample_pixels(subject, camera, rows, cols, INNER_GRID)
    coverage = samples[..., 3]
    lowest = scipy.ndimage.minimum_filter(coverage, 3)
    highest = scipy.ndimage.maximum_filter(coverage, 3)
    missed = touched & (coverage == 0)
    rows, cols = np.nonzero((lowest != highest) | missed)
    samples[rows, cols] = _sample_pixels(subject, camera, rows, cols, EDGE_GRID)
    rgba[:] = np.rint(samples * 255)
    return rgba, depth


def _sample_pixels(
    subject: Subject,
    camera: Cameras,
    rows: Int[np.ndarray, "n"],
    cols: Int[np.ndarray, "n"],
    grid: int,
) -> Float[np.ndarray, "n 4"]:
    """Per pixel: mean sRGB color of the samples that hit, and the share that hit."""
    pixels = np.zeros((len(rows), 4), np.float32)
    step = _SAMPLES_AT_ONCE // grid**2
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        pixels[block] = _sample_block(subject, camera, rows[block], cols[block], grid)
    return pixels


def _sample_block(
    subject: Subject,
    camera: Cameras,
    rows: Int[np.ndarray, "n"],
    cols: Int[np.ndarray, "n"],
    grid: int,
) -> Float[np.ndarray, "n 4"]:
    """`_sample_pixels` for a block of pixels that fits into the processor's cache."""
    places = (np.arange(grid) + 0.5) / grid
    shape = (len(rows), grid, grid)
    x = np.broadcast_to(cols[:, None, None] + places[None, None, :], shape).ravel()
    y = np.broadcast_to(rows[:, None, None] + places[None, :, None], shape).ravel()
    hits, directions = cast_pixels(subject.caster, camera, x, y)
    is_hit = np.flatnonzero(hits.is_hit)
    hits = hits.select(is_hit)
    # The inner grid's sample size is used everywhere, so that no seam is visible.
    sample_size = hits.distances / camera.Ks[0, 0] / np.float32(INNER_GRID)
    samples = np.zeros((len(x), 4), np.float32)
    samples[is_hit, :3] = colors_at(subject, hits, directions[is_hit], sample_size)
    samples[is_hit, 3] = 1
    sums = samples.reshape(len(rows), grid * grid, 4).sum(1)
    counts = np.maximum(sums[:, 3:], 1)
    whole = np.full_like(counts, grid * grid)
    return sums / np.concatenate([counts, counts, counts, whole], axis=1)


def colors_at(
    subject: Subject,
    hits: Hits,
    directions: Float[np.ndarray, "n 3"],
    sample_size: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n 3"]:
    """sRGB colors at hits seen along `directions`; `sample_size` in world units."""
    surface = surface_at(subject.table, subject.faces, hits)
    size = sample_size / np.float32(subject.mesh.body_length)
    fur = strands(surface, subject.coat, size)
    linear = shade(surface, fur, directions, subject.coat, subject.light)
    return srgb_from_linear(linear)


def srgb_from_linear(color: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """The sRGB transfer curve (IEC 61966-2-1); input is clipped to [0, 1]."""
    color = np.clip(color, 0, 1)
    curve = 1.055 * np.maximum(color, 0.0031308) ** (1 / 2.4) - 0.055
    return np.where(color <= 0.0031308, 12.92 * color, curve)


def cast_pixels(
    caster: RayCaster,
    camera: Cameras,
    x: Float[np.ndarray, "n"],
    y: Float[np.ndarray, "n"],
) -> tuple[Hits, Float[np.ndarray, "n 3"]]:
    """First hits of the rays through pixel coordinates, and the ray directions.

    Directions have unit camera z, so hit distances are camera-z depths.
    """
    viewmat, K = np.asarray(camera.viewmats), np.asarray(camera.Ks)
    right, down, forward = viewmat[:3, :3]
    across = ((x - K[0, 2]) / K[0, 0]).astype(np.float32)
    along = ((y - K[1, 2]) / K[1, 1]).astype(np.float32)
    directions = across[:, None] * right + along[:, None] * down + forward
    center = -(viewmat[:3, :3].T.astype(np.float64) @ viewmat[:3, 3])
    return caster.cast(center.astype(np.float32), directions), directions


def project_to_pixels(
    vertices: Float[np.ndarray, "n 3"], camera: Cameras
) -> Float[np.ndarray, "n 2"]:
    """Pixel coordinates (column, row) of vertices, which are in front of the camera."""
    viewmat = np.asarray(camera.viewmats, np.float64)
    K = np.asarray(camera.Ks, np.float64)
    local = np.einsum("ij,nj->ni", viewmat[:3, :3], vertices) + viewmat[:3, 3]
    return local[:, :2] / local[:, 2:] * K[(0, 1), (0, 1)] + K[:2, 2]


def _touched_pixels(
    vertices: Float[np.ndarray, "n 3"], camera: Cameras
) -> Bool[np.ndarray, "h w"]:
    """The pixels that contain a projected vertex, visible or not."""
    cols, rows = np.floor(project_to_pixels(vertices, camera)).astype(int).T
    inside = (cols >= 0) & (cols < camera.width) & (rows >= 0) & (rows < camera.height)
    touched = np.zeros((camera.height, camera.width), bool)
    touched[rows[inside], cols[inside]] = True
    return touched


def _filled_box(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The bounding box of a mask."""
    rows, cols = np.asarray(mask.any(axis=1)), np.asarray(mask.any(axis=0))
    return _span(rows)[:, None] & _span(cols)[None, :]


def _span(mask: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """True between the first and the last true entry of a mask, inclusive."""
    return np.logical_or.accumulate(mask) & np.logical_or.accumulate(mask[::-1])[::-1]


def _dilated(mask: Bool[np.ndarray, "h w"], side: int) -> Bool[np.ndarray, "h w"]:
    """True where the square of `side` pixels around a pixel contains a true pixel."""
    return scipy.ndimage.maximum_filter(mask, side)
