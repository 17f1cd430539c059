"""Tiny scenes on disk: a ball whose colors are its surface normals, computed exactly.

Uses the pinhole formulas directly and none of the package's geometry.
"""

import json

import numpy as np
from PIL import Image

CENTER, RADIUS = np.array([0.3, -0.2, 0.5]), 0.6
DEPTH_UNIT = 1e-4


def poses(num_views):
    """Camera-to-world, OpenCV axes, looking at the ball from uneven distances."""
    result = []
    for i in range(num_views):
        azimuth, elevation = 2 * np.pi * i / num_views, 0.5 * np.sin(3.0 * i)
        direction = np.array(
            [
                np.cos(azimuth) * np.cos(elevation),
                np.sin(azimuth) * np.cos(elevation),
                np.sin(elevation),
            ]
        )
        forward = -direction
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        c2w = np.eye(4)
        c2w[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        c2w[:3, 3] = CENTER + (2.5 + 0.1 * (i % 4)) * direction
        result.append(c2w)
    return result


def ball_image(c2w, K, width, height):
    """Straight RGBA uint8 and camera-z depth of the ball; color = (normal + 1) / 2."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = (columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]
    rays = np.stack([x, y, np.ones_like(x)], -1) @ c2w[:3, :3].T
    offset = c2w[:3, 3] - CENTER
    a, b = (rays * rays).sum(-1), rays @ offset
    root = b * b - a * (offset @ offset - RADIUS**2)
    hit = root > 0
    depth = np.where(hit, (-b - np.sqrt(np.maximum(root, 0))) / a, 0)
    normal = (offset + depth[..., None] * rays) / RADIUS
    color = np.where(hit[..., None], 0.5 * normal + 0.5, 0)
    rgba = np.concatenate([color, hit[..., None]], -1)
    return np.round(255 * rgba).astype(np.uint8), depth


def write_scene(
    folder, num_views=8, num_inputs=3, width=24, height=24, depth=True, extra=None
):
    """Writes a scene in our format and returns its camera document.

    `num_inputs` = 0 gives no frame a role; `extra` is added to the document.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "depths").mkdir()
    K = intrinsics(width, height)
    frames = []
    for i, c2w in enumerate(poses(num_views)):
        rgba, z = ball_image(c2w, K, width, height)
        frame = {"file_path": f"images/cam_{i:03}.png", "w": width, "h": height}
        frame |= {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
        frame["w2c"] = np.linalg.inv(c2w).tolist()
        Image.fromarray(rgba).save(folder / frame["file_path"])
        if depth:
            frame["depth_path"] = f"depths/cam_{i:03}.png"
            steps = np.round(z / DEPTH_UNIT).astype(np.uint16)
            Image.fromarray(steps).save(folder / frame["depth_path"])
        if num_inputs:
            frame["split"] = "input" if i < num_inputs else "novel"
        frames.append(frame)
    document = {"id": folder.name, "depth_unit": DEPTH_UNIT, "frames": frames}
    document |= extra or {}
    write_cameras(folder, document)
    return document


def intrinsics(width, height):
    """Off-center and not quite square; the ball stays in the frame."""
    fx = 1.4 * min(width, height)
    return np.array(
        [[fx, 0, 0.5 * width + 0.7], [0, 1.03 * fx, 0.5 * height - 0.4], [0, 0, 1]]
    )


def write_cameras(folder, document):
    """Writes the camera file of a scene in our format."""
    (folder / "opencv_cameras.json").write_text(json.dumps(document))


def write_scenes(root, num_scenes, **kwargs):
    """Several scenes `000`, `001`, ... below `root`."""
    for i in range(num_scenes):
        write_scene(root / f"{i:03}", **kwargs)
    return root


def points_and_normals(rgba, depth, viewmat, K):
    """World points [n 3] of the pixels with depth, and the normals in their colors."""
    rows, columns = np.nonzero(depth)
    z = depth[rows, columns]
    x = (columns + 0.5 - K[0, 2]) / K[0, 0] * z
    y = (rows + 0.5 - K[1, 2]) / K[1, 1] * z
    camera = np.stack([x, y, z], -1)
    world = (camera - viewmat[:3, 3]) @ viewmat[:3, :3]
    return world, rgba[rows, columns, :3].astype(float) * 2 - 1


def nerf_document(num_views, width, height):
    """The `transforms.json` of a scene of `write_scene`."""
    flip = np.diag([1.0, -1, -1, 1])  # OpenCV camera axes to OpenGL's
    frames = [
        {"file_path": f"./images/cam_{i:03}", "transform_matrix": (c2w @ flip).tolist()}
        for i, c2w in enumerate(poses(num_views))
    ]
    K = intrinsics(width, height)
    intrinsic = {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
    return {"w": width, "h": height, "frames": frames} | intrinsic


def to_nerf(folder, document):
    """Replaces the camera file of a scene with a `transforms.json`."""
    (folder / "opencv_cameras.json").unlink()
    (folder / "transforms.json").write_text(json.dumps(document))
