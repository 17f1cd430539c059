"""Distances between the centers of Gaussians and the true surface. NumPy."""

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import KDTree

SURFACE_DEFINITIONS = {
    "chamfer": "half the sum of two mean distances, in units of the object's radius: "
    "centers to mesh, weighted by blend weight, and mesh to centers",
    "f_01": "F-score at .01 of the object's radius: 2 P R / (P + R), P the share of "
    "blend weight within this distance of the mesh, R the share of the mesh within "
    "this distance of a center",
    "f_005": "F-score at .005 of the object's radius",
}
"""Name -> definition, per scene."""

NUM_SAMPLES = 200_000  # points on the mesh, .003 apart on a rodent of radius 1
KEPT_WEIGHT = 0.99  # share of the blend weight that the mesh is compared with


def surface_metrics(
    means: Float[np.ndarray, "n 3"],
    weights: Float[np.ndarray, "n"],
    vertices: Float[np.ndarray, "k 3"],
    faces: Int[np.ndarray, "m 3"],
) -> dict[str, float]:
    """The metrics of `SURFACE_DEFINITIONS` for the centers of n Gaussians.

    `means` and `vertices` are in one frame, of any unit. `weights` are the Gaussians'
    blend weights over the evaluated views. The object's radius is the greatest distance
    of a vertex from the center of the mesh's bounding box. The mesh is represented by
    evenly spread points. Their distances are those to the heaviest centers with .99 of
    the weight, so that invisible Gaussians do not count as surface. NaN if no Gaussian
    is visible.
    """
    total = weights.sum()
    if not total > 0:
        return dict.fromkeys(SURFACE_DEFINITIONS, float("nan"))
    middle = 0.5 * (vertices.min(0) + vertices.max(0))
    radius = np.linalg.norm(vertices - middle, axis=-1).max()
    points = sample_surface(vertices, faces, NUM_SAMPLES)
    order = np.argsort(-weights, kind="stable")
    num_kept = np.searchsorted(np.cumsum(weights[order]), KEPT_WEIGHT * total) + 1
    to_mesh = KDTree(points).query(means)[0] / radius
    to_centers = KDTree(means[order[:num_kept]]).query(points)[0] / radius

    def f_score(bound: float) -> float:
        precision = weights[to_mesh < bound].sum() / total
        recall = (to_centers < bound).mean()
        return float(2 * precision * recall / max(precision + recall, 1e-12))

    accuracy = (weights * to_mesh).sum() / total
    return {
        "chamfer": float(0.5 * (accuracy + to_centers.mean())),
        "f_01": f_score(0.01),
        "f_005": f_score(0.005),
    }


def sample_surface(
    vertices: Float[np.ndarray, "k 3"], faces: Int[np.ndarray, "m 3"], count: int
) -> Float[np.ndarray, "count 3"]:
    """Points spread evenly over a mesh's area; the same for the same mesh.

    Stratified: every triangle gets its share of the points within one. The samplers of
    trimesh draw triangles at random, or reject points, so their shares vary.
    """
    corners = np.asarray(vertices, np.float64)[faces]
    edges = corners[:, 1:] - corners[:, :1]
    areas = np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=-1)
    rng = np.random.default_rng(0)
    # jittered equal steps along the cumulative area
    steps = (np.arange(count) + rng.random(count)) / count
    triangle = np.searchsorted(np.cumsum(areas) / areas.sum(), steps)
    triangle = np.minimum(triangle, len(faces) - 1)
    # points of a square, folded onto the triangle
    u, v = rng.random((2, count))
    is_outside = u + v > 1
    u, v = np.where(is_outside, (1 - u, 1 - v), (u, v))
    edges = edges[triangle]
    return corners[triangle, 0] + u[:, None] * edges[:, 0] + v[:, None] * edges[:, 1]
