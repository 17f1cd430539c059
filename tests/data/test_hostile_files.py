"""Every way files and folders can be wrong, and the exact line their user reads."""

import os

import numpy as np
import pytest
from breakers import (
    DEPTH,
    FILE,
    JSON,
    RESIZED,
    SCENE,
    VIEW,
    frame_0,
    line_of,
    picture_0,
    promise,
    refusal,
    remove,
    save_as,
    without,
)
from PIL import ExifTags, Image
from tiny_scenes import write_cameras, write_scene, write_scenes

from facelift_jax.data.scenes import open_source


def truncate(path):
    path.write_bytes(path.read_bytes()[:120])


def not_a_picture(path):
    path.write_bytes(b"GIF89a, says who?")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link_out(path):
    outside = path.parent.parent.parent / "outside.png"
    path.rename(outside)
    path.symlink_to(outside)


def extra_camera(folder, document):
    extra = document["frames"][3] | {"file_path": "images/cam_004.png"}
    write_cameras(folder, document | {"frames": [*document["frames"], extra]})


def missing_camera(folder, document):
    write_cameras(folder, document | {"frames": document["frames"][:-2]})


def same_picture(folder, document):
    document["frames"][2]["file_path"] = "images/./cam_001.png"
    write_cameras(folder, document)


def other_size(folder, document):
    document["frames"][2] |= {"w": 20, "h": 20}
    save_as("RGBA", (20, 20))(folder / "images" / "cam_002.png")
    write_cameras(folder, document)


# name -> (what is done to a good scene of 4 views, the line); found on opening
BAD_PICTURES = {
    "pipe": (picture_0(pipe), f"{VIEW}: not a file; each camera needs its own"),
    "missing picture": (
        picture_0(remove),
        f"{VIEW}: there is no such picture; each camera needs its own",
    ),
    "extra camera": (
        extra_camera,
        "scene s, view 4 ({folder}/images/cam_004.png): there is no such picture; each "
        "camera needs its own",
    ),
    "missing cameras": (
        missing_camera,
        f"{SCENE}: 2 pictures in images have no camera (the first is 'cam_002.png'); "
        "remove them or add their cameras",
    ),
    "no picture": (
        picture_0(not_a_picture),
        f"{VIEW}: not a readable PNG or JPEG (cannot identify image file it)",
    ),
    "grey picture": (
        picture_0(save_as("L")),
        f"{VIEW}: picture of Pillow mode L, expected RGB or RGBA",
    ),
    "RGB without mask": (
        picture_0(save_as("RGB")),
        f'{VIEW}: RGB without an alpha channel and without a "mask_path": nothing says '
        "which pixels show the object",
    ),
    "alpha and mask": (
        frame_0(mask_path="images/cam_001.png"),
        f'{VIEW}: an alpha channel and a "mask_path": the silhouette must come from '
        "exactly one of them",
    ),
    "65 megapixels": (
        picture_0(promise(65_000, 1000)),
        f"{VIEW}: the header promises 65000 x 1000 px, more than 64 megapixels",
    ),
    "90 megapixels": (
        picture_0(promise(90_000, 1000)),
        f"{VIEW}: the header promises more than 64 megapixels",
    ),
    "10 gigapixels": (
        picture_0(promise(100_000, 100_000)),
        f"{VIEW}: the header promises more than 64 megapixels",
    ),
    "header differs from camera": (
        picture_0(promise(25, 24)),
        f"{VIEW}: the picture is 25 x 24 px, but its camera was made for 24 x 24"
        + RESIZED,
    ),
    "camera differs from header": (
        frame_0(w=48, h=48),
        f"{VIEW}: the picture is 24 x 24 px, but its camera was made for 48 x 48"
        + RESIZED,
    ),
    "same picture": (
        same_picture,
        f"{FILE}: duplicate frames: views 1 and 2 name the same picture",
    ),
    "two sizes": (
        other_size,
        f"{FILE}: view 2 is 20 x 20 px, view 0 is 24 x 24; a scene has one picture "
        "size",
    ),
    "absolute path": (
        frame_0(file_path="/etc/passwd"),
        f"{JSON}: \"file_path\" '/etc/passwd' must be relative to the scene folder",
    ),
    "parent path": (
        frame_0(file_path="images/../../x.png"),
        f'{JSON}: "file_path" \'images/../../x.png\' holds "..", which is not allowed',
    ),
    "link out": (
        picture_0(link_out),
        f"{JSON}: \"file_path\" 'images/cam_000.png' leaves the "
        "scene folder through a link",
    ),
    "absolute depth path": (
        frame_0(depth_path="/etc/passwd"),
        f"{JSON}: \"depth_path\" '/etc/passwd' must be relative to the scene folder",
    ),
    "null byte": (
        frame_0(file_path="images/\0.png"),
        f"{JSON}: \"file_path\" 'images/\\x00.png' must be relative "
        "to the scene folder",
    ),
    "newline in a path": (
        frame_0(file_path="a\n\x1b[31mscene t is fine"),
        "scene s, view 0 ({folder}/a ?[31mscene t is fine): there is no such picture; "
        "each camera needs its own",
    ),
    "long path": (
        frame_0(file_path="a" * 2000),
        f'{JSON}: "file_path" must be a path of 1 to 1023 characters',
    ),
    "long name": (
        frame_0(file_path="a" * 300),
        "scene s, view 0 ({folder}/" + "a" * 300 + "): there is no such picture; each "
        "camera needs its own",
    ),
    "no path": (
        without("file_path"),
        f'{JSON}: "file_path" must be a path of 1 to 1023 characters',
    ),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture_is_refused_with_one_line(tmp_path, name):
    break_it, expected = BAD_PICTURES[name]
    line = refusal(tmp_path / "s", break_it)
    assert line == expected.replace("{folder}", str(tmp_path / "s"))


def depth_0(save):
    return lambda folder, document: save(folder / "depths" / "cam_000.png")


def turn_for_viewers(path, orientation=6):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(path).save(path, exif=exif)


def small_mask(folder, document):
    """A mask stored as 0 and 1 instead of 0 and 255."""
    Image.new("RGB", (24, 24)).save(folder / "images" / "cam_000.png")
    Image.new("L", (24, 24), 1).save(folder / "mask.png")
    frame_0(mask_path="mask.png")(folder, document)


# the same for what only decoding can find
BAD_PIXELS = {
    "truncated": (
        picture_0(truncate),
        f"{VIEW}: truncated or damaged picture (image file is truncated)",
    ),
    "nothing behind the header": (
        picture_0(promise(24, 24)),
        f"{VIEW}: truncated or damaged picture (image file is truncated "
        "(0 bytes not processed))",
    ),
    "empty mask": (
        picture_0(save_as("RGBA")),
        f"{VIEW}: empty mask: no pixel's coverage is above one half (the highest value "
        "is 0 of 255)",
    ),
    "mask of 0 and 1": (
        small_mask,
        "scene s, view 0 ({folder}/mask.png): empty mask: no pixel's coverage is above "
        "one half (the highest value is 1 of 255)",
    ),
    "turned by its viewer": (
        picture_0(turn_for_viewers),
        f"{VIEW}: EXIF orientation 6: viewers turn what is stored, to which the "
        "calibration belongs; remove the orientation",
    ),
    "missing depth": (
        depth_0(remove),
        f"{DEPTH}: there is no such picture; each camera needs its own",
    ),
    "depth of 8 bits": (
        depth_0(save_as("L")),
        f"{DEPTH}: picture of Pillow mode L, expected I;16",
    ),
    "depth of another size": (
        depth_0(save_as("I;16", (12, 12))),
        f"{DEPTH}: the picture is 12 x 12 px, but its camera was made for 24 x 24"
        + RESIZED,
    ),
}


@pytest.mark.parametrize("name", BAD_PIXELS)
def test_bad_pixels_are_refused_with_one_line(tmp_path, name):
    break_it, expected = BAD_PIXELS[name]
    line = refusal(tmp_path / "s", break_it, lambda scene: scene.take(np.arange(4)))
    assert line == expected.replace("{folder}", str(tmp_path / "s"))


@pytest.mark.parametrize("orientation", [0, 1])  # not known, upright
def test_a_picture_that_no_viewer_turns_is_good(tmp_path, orientation):
    write_scene(tmp_path / "s")
    turn_for_viewers(tmp_path / "s" / "images" / "cam_000.png", orientation)
    assert open_source(tmp_path / "s")[0].take(np.arange(1)).rgba.any()


def test_a_folder_without_scenes_is_refused(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert line_of(lambda: open_source(nowhere)) == (
        f"{nowhere}: there is no such folder or list of scene folders"
    )
    assert line_of(lambda: open_source(tmp_path)) == (
        f"{tmp_path}: no scene found; a scene is a folder with opencv_cameras.json or "
        "transforms.json"
    )
    write_scenes(tmp_path, 2, num_views=2)
    (tmp_path / "notes").mkdir()
    assert line_of(lambda: open_source(tmp_path)) == (
        f"{tmp_path}/notes: holds neither of opencv_cameras.json and transforms.json; "
        "a scene has exactly one camera file"
    )


def test_bad_lists_are_refused(tmp_path):
    write_scenes(tmp_path, 1, num_views=2)
    path = tmp_path / "list.txt"
    path.write_text("000\n\n001\n")
    line = line_of(lambda: open_source(path))
    assert line == f"{path}, line 3: '001' is not a folder"
    path.write_text("000\n./000\n")
    line = line_of(lambda: open_source(path))
    assert line == f"{path}: scene folder {tmp_path}/000 is named twice"
    path.write_bytes(b"\xff\xfe\x00")
    line = line_of(lambda: open_source(path))
    assert line == f"{path}: not a readable list of scene folders"
    path.write_text("a" * 5000)
    assert "is not a folder" in line_of(lambda: open_source(path))


def test_a_nerf_name_without_ending_cannot_leave_the_folder(tmp_path):
    folder = tmp_path / "s"
    write_scene(folder, num_views=2)
    (folder / "opencv_cameras.json").unlink()
    (folder / "images" / "cam_000.png").rename(tmp_path / "outside.png")
    (folder / "images" / "cam_000.png").symlink_to(tmp_path / "outside.png")
    pose = np.eye(4).tolist()
    frames = f'[{{"file_path": "images/cam_000", "transform_matrix": {pose}}}]'
    (folder / "transforms.json").write_text(
        f'{{"camera_angle_x": 1.0, "frames": {frames}}}'
    )
    assert "leaves the scene folder through a link" in line_of(
        lambda: open_source(folder)[0]
    )
