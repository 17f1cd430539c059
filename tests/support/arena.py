"""A synthetic recording of a rat in an arena by six cameras with distorting lenses.

The animal is ray-cast through each lens. The lens model is implemented here a second
time, with another method for the inverse, so that it is an independent reference.
"""

import functools
import json
from unittest import mock

import numpy as np
import scipy.io
import scipy.spatial
from PIL import Image

from facelift_jax.data.rodent import RodentOptions, render, sample_parameters
from facelift_jax.data.rodent.asset import load_rodent
from facelift_jax.data.rodent.pose import pose_mesh
from facelift_jax.io.image_files import write_video
from facelift_jax.structs import Cameras

NAMES = tuple("ABCDEF")
AZIMUTHS = (-147.0, 34.0, 86.0, -11.0, 144.0, -64.0)
ELEVATIONS = (11.0, 24.0, 31.0, 17.0, 20.0, 28.0)
DISTANCES = (246.0, 415.0, 330.0, 290.0, 380.0, 310.0)  # mm
FOCALS = (
    (1610, 1604),
    (1588, 1595),
    (1600, 1600),
    (1575, 1590),
    (1630, 1618),
    (1597, 1609),
)
OFFSETS = ((80, -35), (-62, 48), (15, 77), (-80, -20), (44, 60), (-9, -71))  # px
LENSES = (  # k1 k2 p1 p2 k3
    (-0.28, 0.16, 8e-4, -5e-4, -0.05),
    (-0.19, 0.07, -6e-4, 9e-4, 0.0),
    (0.11, -0.08, 4e-4, 4e-4, 0.02),
    (-0.33, 0.21, -9e-4, -7e-4, -0.09),
    (-0.08, 0.0, 0.0, 1e-3, 0.0),
    (-0.24, 0.12, 1e-3, 2e-4, -0.02),
)
WIDTH, HEIGHT = 1152, 1024
ANIMAL_RADIUS = 40.0  # mm
HALF_A_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
FLOOR = np.array([94, 112, 71], np.uint8)


def rig(shrink=1):
    """World-to-camera poses [6 4 4] in mm, our Ks [6 3 3] and (width, height)."""
    viewmats, Ks = [], []
    for view, (azimuth, elevation) in enumerate(np.deg2rad([AZIMUTHS, ELEVATIONS]).T):
        flat, height = np.cos(elevation), np.sin(elevation)
        eye = DISTANCES[view] * np.array(
            [flat * np.cos(azimuth), flat * np.sin(azimuth), height]
        )
        past = 9 * np.array([np.sin(view), np.cos(view), 1.0])  # where it points, mm
        forward = (past - eye) / np.linalg.norm(past - eye)
        upright = [0.05 * np.sin(3 * view), 0.04, 1.0]  # rolled a little
        right = np.cross(forward, upright)
        right /= np.linalg.norm(right)
        viewmat = np.eye(4)
        viewmat[:3, :3] = right, np.cross(forward, right), forward
        viewmat[:3, 3] = -viewmat[:3, :3] @ eye
        viewmats.append(viewmat)
        fx, fy = FOCALS[view]
        cx, cy = WIDTH / 2 + OFFSETS[view][0], HEIGHT / 2 + OFFSETS[view][1]
        Ks.append(np.array([[fx, 0, cx], [0, fy, cy], [0, 0, shrink]]) / shrink)
    return np.array(viewmats), np.array(Ks), (WIDTH // shrink, HEIGHT // shrink)


def distort(x, y, lens):
    """The Brown-Conrady model on the plane z = 1."""
    k1, k2, p1, p2, k3 = lens
    r2 = x**2 + y**2
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
        y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y,
    )


def undistort(x, y, lens):
    """The inverse of `distort` by additive fixed-point steps, checked."""
    inverse_x, inverse_y = x, y
    for _ in range(200):
        error_x, error_y = distort(inverse_x, inverse_y, lens)
        error_x, error_y = error_x - x, error_y - y
        if max(np.abs(error_x).max(), np.abs(error_y).max()) < 1e-13:
            break
        inverse_x, inverse_y = inverse_x - error_x, inverse_y - error_y
    assert np.abs(error_x).max() < 1e-9
    assert np.abs(error_y).max() < 1e-9
    return inverse_x, inverse_y


def project(points, viewmat, K, lens):
    """Pixels (column, row) of world points [n 3]."""
    local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    x, y = distort(local[:, 0] / local[:, 2], local[:, 1] / local[:, 2], lens)
    return np.stack([K[0, 0] * x + K[0, 2], K[1, 1] * y + K[1, 2]], axis=-1)


@functools.cache
def animal(index):
    """The rat in pose `index`, in the unit ball, ready to be rendered."""
    coat_and_light = sample_parameters(0, RodentOptions(64))
    pose = sample_parameters(index, RodentOptions(64))["pose"]
    mesh = pose_mesh(load_rodent(), pose)
    return render.prepare_subject(mesh, coat_and_light["coat"], coat_and_light["light"])


def position(index):
    """Center of the ball around the animal at time `index`, mm."""
    return np.array([14 * np.cos(index), 14 * np.sin(index), 4.0])


def pose_for_animal(viewmat, index, scale=ANIMAL_RADIUS, origin=(0, 0, 0)):
    """A camera's pose in the animal's frame, in which `scale` world units are one.

    `origin`: origin of the camera's world, mm.
    """
    moved = viewmat.copy()
    shift = viewmat[:3, :3] @ (position(index) - origin) * (scale / ANIMAL_RADIUS)
    moved[:3, 3] = (viewmat[:3, 3] + shift) / scale
    return moved


def render_through_lens(index, viewmat, K, size, lens):
    """RGBA of the animal through a lens; `viewmat` as `pose_for_animal` gives it."""
    cast = render.cast_pixels
    middle, focal = K[:2, 2], K[(0, 1), (0, 1)]

    def cast_distorted(caster, camera, x, y):
        across, down = (x - middle[0]) / focal[0], (y - middle[1]) / focal[1]
        across, down = undistort(across, down, lens)
        return cast(
            caster, camera, across * focal[0] + middle[0], down * focal[1] + middle[1]
        )

    def project_distorted(vertices, camera):
        del camera
        return project(vertices, viewmat, K, lens)

    with (
        mock.patch.object(render, "cast_pixels", cast_distorted),
        mock.patch.object(render, "project_to_pixels", project_distorted),
    ):
        return render.render_image(animal(index), Cameras(viewmat, K, *size))[0]


def recording(num_times, shrink=1):
    """What six cameras see: RGB [6 n h w 3] on the floor, and masks [6 n h w]."""
    viewmats, Ks, size = rig(shrink)
    rgba = np.stack(
        [
            [
                render_through_lens(i, pose_for_animal(viewmat, i), K, size, lens)
                for i in range(num_times)
            ]
            for viewmat, K, lens in zip(viewmats, Ks, LENSES, strict=True)
        ]
    )
    alpha = rgba[..., 3:] / 255
    colors = np.rint(alpha * rgba[..., :3] + (1 - alpha) * FLOOR).astype(np.uint8)
    return colors, np.where(rgba[..., 3] > 127, 255, 0).astype(np.uint8)


def write_images(folder, frames):
    """Writes frames [6 n h w *c] as folders A to F of PNGs."""
    for name, images in zip(NAMES, frames, strict=True):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{i}.png", compress_level=1)


def write_opencv(path, shrink=1):
    """Writes the calibration in this package's format, with lens coefficients."""
    viewmats, Ks, (width, height) = rig(shrink)
    frames = [
        {"file_path": f"videos/{name}.mp4", "w": width, "h": height}
        | {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
        | dict(zip(("k1", "k2", "p1", "p2", "k3"), lens, strict=True))
        | {"w2c": viewmat.tolist()}
        for name, viewmat, K, lens in zip(NAMES, viewmats, Ks, LENSES, strict=True)
    ]
    path.write_text(json.dumps({"frames": frames}))


def write_anipose(path, shrink=1):
    """Writes the calibration as aniposelib does: pixel centers start at 0."""
    viewmats, Ks, size = rig(shrink)
    text = ""
    for i, (viewmat, K) in enumerate(zip(viewmats, Ks, strict=True)):
        vector = scipy.spatial.transform.Rotation.from_matrix(viewmat[:3, :3])
        text += f'[cam_{i}]\nname = "{NAMES[i]}"\nsize = {list(size)}\n'
        text += f"matrix = {(K - HALF_A_PIXEL).tolist()}\n"
        text += f"distortions = {list(LENSES[i])}\n"
        text += f"rotation = {vector.as_rotvec().tolist()}\n"
        text += f"translation = {viewmat[:3, 3].tolist()}\n\n"
    path.write_text(text + "[metadata]\nadjusted = false\nerror = 0.3\n")


def write_label3d(path, shrink=1):
    """Writes the calibration as label3d does: row vectors, pixel centers start at 1."""
    viewmats, Ks, _ = rig(shrink)
    params, camnames = np.empty((6, 1), object), np.empty((6, 1), object)
    for i, (viewmat, K, lens) in enumerate(zip(viewmats, Ks, LENSES, strict=True)):
        k1, k2, p1, p2, k3 = lens
        K_matlab = K.T.copy()
        K_matlab[2, :2] += 0.5
        params[i, 0] = {"K": K_matlab, "r": viewmat[:3, :3].T, "t": viewmat[:3, 3]}
        params[i, 0] |= {"RDistort": [k1, k2, k3], "TDistort": [p1, p2]}
        camnames[i, 0] = NAMES[i]
    scipy.io.savemat(path, {"params": params, "camnames": camnames, "sync": 3})


def write_videos(folder, colors, masks, fps):
    """Writes the recording as one video per camera, masks white on black."""
    gray = np.repeat(masks[..., None], 3, axis=-1)
    for side, frames in (("images", colors), ("masks", gray)):
        (folder / side).mkdir()
        for name, video in zip(NAMES, frames, strict=True):
            write_video(folder / side / f"{name}.mp4", video, fps)


def copied(recording, folder):
    """A copy of the recording made of links, so that files can be replaced."""
    (folder / "c.toml").symlink_to(recording / "c.toml")
    for side in ("images", "masks"):
        for path in (recording / side).rglob("*.png"):
            link = folder / path.relative_to(recording)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder
