"""The data checks on good scenes, and the exact message for every kind of error."""

import dataclasses

import numpy as np
import pytest
from lump_scenes import aimed, image, lump_scene, ring
from PIL import Image
from tiny_scenes import write_cameras, write_scene

from facelift_jax.data.scenes import open_source
from facelift_jax.data.validation.checks import check_scene
from facelift_jax.geometry.paths import look_at
from facelift_jax.geometry.rigid import transform_world
from facelift_jax.structs import Cameras

WHITE = (1.0, 1.0, 1.0)
# a rig that detects most mistakes
RIG = ring(8, elevations=(20.0, -30.0, 50.0))


@pytest.fixture(scope="module")
def lump():
    return lump_scene(RIG)


def with_cameras(scene, viewmats=None, Ks=None):
    cameras = scene.cameras
    viewmats = cameras.viewmats if viewmats is None else np.float32(viewmats)
    Ks = cameras.Ks if Ks is None else np.float32(Ks)
    cameras = Cameras(viewmats, Ks, cameras.width, cameras.height)
    return dataclasses.replace(scene, cameras=cameras)


def moved(views, x, y):
    """A corruption: principal points moved by (x, y) pixels."""

    def apply(scene):
        Ks = scene.cameras.Ks.copy()
        Ks[views, :2, 2] += np.float32([x, y])
        return with_cameras(scene, Ks=Ks)

    return apply


def posed(change):
    """A corruption: every stored pose is changed."""

    def apply(scene):
        poses = [change(np.float64(viewmat)) for viewmat in scene.cameras.viewmats]
        return with_cameras(scene, np.stack(poses))

    return apply


def swapped(scene):
    order = np.array([0, 4, 2, 3, 1, 5, 6, 7])
    return with_cameras(scene, scene.cameras.viewmats[order], scene.cameras.Ks[order])


def repainted(change):
    """A corruption: changed images."""

    def apply(scene):
        rgba = scene.rgba.copy()
        change(rgba)
        return dataclasses.replace(scene, rgba=rgba)

    return apply


def mirror_view_2(rgba):
    rgba[2] = rgba[2, :, ::-1]


def shrink_view_2(rgba):
    rgba[2, ..., 3] = 0
    rgba[2, 30:36, 30:36, 3] = 255


def repeat_view_1(rgba):
    rgba[5] = rgba[1]


def fill_views(rgba):
    rgba[3:5, ..., 3] = 255


def haze(rgba):
    rgba[4, ..., 3] = np.maximum(rgba[4, ..., 3], 51)


def halved(scene):
    """Images of half the size, with the right size but the old intrinsics."""
    size = scene.cameras.width // 2
    Ks = scene.cameras.Ks * np.float32([[0.5], [0.5], [1]])
    views = zip(scene.cameras.viewmats, Ks, strict=True)
    rgba = np.stack([image(*map(np.float64, view), size, size) for view in views])
    rgba[..., 2] = np.arange(len(rgba))[:, None, None]
    cameras = Cameras(scene.cameras.viewmats, scene.cameras.Ks, size, size)
    return dataclasses.replace(scene, rgba=rgba, cameras=cameras)


def same_camera(scene):
    viewmats, Ks = scene.cameras.viewmats.copy(), scene.cameras.Ks.copy()
    viewmats[6], Ks[6] = viewmats[3], Ks[3]
    viewmats[6, 0, 3] += 1e-5
    return with_cameras(scene, viewmats, Ks)


def away(distance):
    """A corruption: the world's origin at a distance from the object."""

    def apply(scene):
        exact = with_cameras(scene).cameras
        exact = dataclasses.replace(exact, viewmats=np.float64(exact.viewmats))
        shift = np.array([distance, 0, 0])
        return with_cameras(
            scene, transform_world(exact, np.eye(3), shift, 1.0).viewmats
        )

    return apply


OPENGL = np.diag([1.0, -1, -1, 1])
AGREE = "rays agree with the masks of all other views; 97% must"
BEHIND = (
    "the object, located by the centroids of the masks, is behind 8 of 8 cameras "
    "(first: view 0)"
)
OUTSIDE = BEHIND.replace("behind 8 of 8 cameras", "outside 4 of 8 images")
ONE_PLACE = (
    "all cameras are at one point, or too far from the world's origin for float32 "
    "(then move the origin to the object)"
)
OTHERS = "the cameras do not belong to these images"
BROKEN = {
    "principal point of one": (
        moved(3, 4, 0),
        f"only 75.3% of view 3's {AGREE}; the principal point of view 3 is off by "
        "about (4, 1) px: did cropping move it?",
    ),
    "principal points of all": (
        moved(slice(None), 4, 0),
        f"only 46.0% of view 1's {AGREE}; all principal points are off by about (4, 0) "
        "px: did cropping move them?",
    ),
    "mirrored": (
        repainted(mirror_view_2),
        f"only 79.1% of view 6's {AGREE}; the image of view 2 is mirrored: mirror it "
        "back",
    ),
    "swapped": (
        swapped,
        f"only 72.5% of view 1's {AGREE}; the cameras of views 1 and 4 are swapped: "
        "swap them back",
    ),
    "camera to world": (
        posed(np.linalg.inv),
        f"{ONE_PLACE}; w2c contains camera-to-world poses: store their inverses",
    ),
    "OpenGL": (
        posed(lambda w2c: OPENGL @ w2c),
        f"{BEHIND}; w2c has OpenGL axes (y up, z backward): negate its second and "
        "third rows",
    ),
    "OpenGL camera to world": (
        posed(lambda w2c: np.linalg.inv(w2c) @ OPENGL),
        f"{ONE_PLACE}; w2c contains camera-to-world poses with OpenGL axes: negate "
        "their second and third columns, then store their inverses",
    ),
    "resized": (
        halved,
        f"{OUTSIDE}; K is for images of about 48 x 48 px: scale it with the images",
    ),
    "principal points of zero": (
        moved(slice(None), -24, -24),
        f"{OUTSIDE}; all principal points are zero, which suggests that they are "
        "missing; set them, usually near the image center, here about (24, 24)",
    ),
    "another mask": (
        repainted(shrink_view_2),
        f"only 0.0% of view 2's {AGREE}; all views but view 2 agree: check its "
        "camera and its mask",
    ),
    "a view twice": (
        repainted(repeat_view_1),
        "views 1 and 5 have the same image: every view needs its own image",
        f"only 85.5% of view 1's {AGREE}; {OTHERS}",
    ),
    "a camera twice": (
        same_camera,
        "views 3 and 6 have the same rays: every view needs its own camera",
        f"only 78.5% of view 6's {AGREE}; {OTHERS}",
    ),
    "opaque": (
        repainted(fill_views),
        "the masks of 2 of 8 views (first: view 3) cover the whole image: is the "
        "alpha channel opaque?",
        f"only 32.2% of view 4's {AGREE}; all views but views 3 and 4 agree: "
        "check their cameras and masks",
    ),
    "haze": (
        repainted(haze),
        "the background of 1 of 8 views (first: view 4) is RGB (244, 220, 205), but "
        "the renderer's is (255, 255, 255); set alpha to 0 outside the object",
    ),
    "far away": (
        away(2e4),
        "points on the rays of view 6 project 0.083 px from their pixels, because the "
        "poses are too far from the origin for float32: move the world's origin to the "
        "object",
    ),
    "farther away": (away(1e5), ONE_PLACE),
    "one view": (
        lambda scene: scene.take(np.array([2])),
        "there is only one view, and nothing to compare it with; add views",
    ),
    "parallel axes": (
        lambda scene: scene.take(np.array([0, 0])),
        "views 0 and 1 have the same image: every view needs its own image",
        "all optical axes are parallel; a rig needs two axes that are not",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_kind_of_error_has_its_message(name, lump):
    corrupt, *lines = BROKEN[name]
    report = check_scene(corrupt(lump), WHITE)
    assert list(report.problems) == lines


def test_an_object_outside_all_other_images_agrees_with_none():
    """Two distant cameras with narrow views: rays leave the image of the other one."""
    cameras = aimed(np.array([[100.0, 0, 0], [0, 100.0, 0]]), 40, 100.0)
    scene = lump_scene(cameras)
    scene.rgba[..., 3] = 0
    scene.rgba[0, 8:28, 10:30, 3] = 255
    scene.rgba[1, 18:38, 10:30, 3] = 255
    (line,) = check_scene(scene, WHITE).problems
    assert line == (
        "only 55.6% of view 0's rays meet another mask; the others leave the other "
        f"images; {OTHERS}"
    )


def test_no_diagnosis_is_made_without_the_flag(lump):
    report = check_scene(moved(3, 4, 0)(lump), WHITE, with_diagnosis=False)
    assert report.problems == (f"only 75.3% of view 3's {AGREE}; {OTHERS}",)


def test_a_good_scene_is_measured(lump):
    report = check_scene(lump, WHITE)
    assert not report.problems
    assert not report.warnings
    measured = report.measurements
    assert measured is not None
    assert measured.is_consistent
    alphas = lump.rgba[..., 3] > 127
    assert measured.coverage == pytest.approx(alphas.mean())
    assert measured.min_coverage == pytest.approx(alphas.mean((1, 2)).min())
    assert (measured.num_views, measured.width, measured.height) == (8, 48, 48)
    assert measured.agreement == 1
    assert (measured.num_in_frame, measured.background_error) == (8, 0)
    assert measured.num_rays > 50
    assert 0 < measured.centroid_error < 2
    assert 0 < measured.round_trip_error < 1e-4
    assert measured.min_ray_distance > 5
    assert len(set(report.image_digests)) == 8


def test_similar_cameras_differ_by_the_distance_of_their_rays(lump):
    """Two cameras rotated by a known angle have a known distance between their rays."""
    viewmats, Ks = lump.cameras.viewmats.copy(), lump.cameras.Ks.copy()
    turn = np.eye(4)
    turn[[0, 2], [2, 0]] = np.array([1, -1]) * np.sin(0.01)
    turn[[0, 2], [0, 2]] = np.cos(0.01)
    viewmats[6], Ks[6] = turn @ viewmats[3], Ks[3]
    measured = check_scene(with_cameras(lump, viewmats, Ks), WHITE, False).measurements
    # the maximum is at the left or right edge: focal x (1 + x^2) x angle
    x = 24 / Ks[3, 0, 0] * 8 / 9
    expected = Ks[3, 0, 0] * (1 + x * x) * 0.01
    assert measured.min_ray_distance == pytest.approx(expected, rel=0.02)


def test_low_coverage_is_a_warning(lump):
    far = lump_scene(ring(8, distance=4.5, elevations=(20.0, -30.0, 50.0)))
    report = check_scene(far, WHITE)
    assert not report.problems
    assert report.warnings == (
        "the masks cover 3.3% of the images: use foreground metrics only, or "
        "crop the images closer to the object",
    )


def varied_scene(seed):
    """Random cameras that look approximately at a random lump, in a random world."""
    rng = np.random.default_rng(seed)
    num_views, size = rng.integers(2, 10), rng.integers(24, 72, 2)
    balls = rng.uniform((-0.5, -0.5, -0.5, 0.1), (0.5, 0.5, 0.5, 0.35), (4, 4))
    directions = rng.normal(size=(num_views, 3))
    distances = rng.uniform(2, 5, num_views)
    eyes = directions * (distances / np.linalg.norm(directions, axis=-1))[:, None]
    targets = rng.uniform(-0.1, 0.1, (num_views, 3))
    rolls = rng.normal(size=3)
    viewmats = np.float64(look_at(eyes, targets, rolls))
    focal = 0.36 * size.min() * distances * rng.uniform(0.9, 1.1, num_views)
    Ks = np.tile(np.eye(3), (num_views, 1, 1))
    Ks[:, 0, 0], Ks[:, 1, 1] = focal, focal * rng.uniform(0.97, 1.03, num_views)
    Ks[:, :2, 2] = size * rng.uniform(0.46, 0.54, (num_views, 2))
    width, height = map(int, size)
    scene = lump_scene(Cameras(viewmats, Ks, width, height), balls)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    scale = 10 ** rng.uniform(-2, 3)  # micrometers or kilometers
    shift = scale * rng.uniform(-5, 5, 3)
    cameras = transform_world(scene.cameras, rotation, shift, scale)
    return with_cameras(scene, cameras.viewmats, Ks)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_fifty_random_rigs_pass(kind):
    for seed in range(50):
        scene = varied_scene(seed)
        if kind == "hard":
            alpha = scene.rgba[..., 3]
            alpha[:] = np.where(alpha > 127, 255, 0)
        report = check_scene(scene, WHITE)
        assert not report.problems, seed
        assert report.measurements.agreement == 1, seed


def write_rgb_and_masks(folder, background):
    """Writes a scene of RGB images on a background, with mask files."""
    document = write_scene(folder, num_views=5, depth=False)
    for frame in document["frames"]:
        path = folder / frame["file_path"]
        rgba = np.array(Image.open(path))
        alpha = rgba[..., 3:] / 255
        color = alpha * rgba[..., :3] + (1 - alpha) * np.array(background)
        Image.fromarray(np.rint(color).astype(np.uint8)).save(path)
        frame["mask_path"] = frame["file_path"].replace("images", "masks")
        (folder / "masks").mkdir(exist_ok=True)
        Image.fromarray(rgba[..., 3]).save(folder / frame["mask_path"])
    write_cameras(folder, document)
    return open_source(folder)[0]


def test_rgb_images_with_masks_keep_their_background(tmp_path):
    gray = write_rgb_and_masks(tmp_path / "gray", (127, 127, 127))
    assert check_scene(gray, WHITE).problems == (
        "the background of 5 of 5 views (first: view 0) is RGB (127, 127, 127), but "
        "the renderer's is (255, 255, 255); store RGBA, or use this background for "
        "rendering (--background 0.498 0.498 0.498, config.data.background)",
    )
    assert not check_scene(gray, (0.498, 0.498, 0.498)).problems
    nearly = write_rgb_and_masks(tmp_path / "nearly", (254, 255, 255))
    report = check_scene(nearly, WHITE)
    assert not report.problems
    assert report.measurements.background_error == pytest.approx(1)
    assert check_scene(
        write_rgb_and_masks(tmp_path / "two", (253, 255, 255)), WHITE
    ).problems


@pytest.mark.parametrize("key", ["part", "split"])  # "split" in files made earlier
def test_a_report_has_the_origin_of_a_scene(tmp_path, key):
    origin = {"recording": "day 1", "time": 12.5, key: "val"}
    write_scene(tmp_path / "a", extra=origin)
    write_scene(tmp_path / "b")
    origins = [check_scene(scene, WHITE).origin for scene in open_source(tmp_path)]
    assert origins == [("day 1", 12.5, "val"), ("", None, None)]
