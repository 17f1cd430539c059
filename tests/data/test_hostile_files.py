"""Invalid files and folders, and the exact error message for each."""

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
    error_of,
    frame_0,
    header_only,
    image_0,
    line_of,
    remove,
    save_as,
    without,
)
from PIL import ExifTags, Image
from tiny_scenes import write_cameras, write_scene, write_scenes

from facelift_jax.data.scenes import open_source


def truncate(path):
    path.write_bytes(path.read_bytes()[:120])


def not_an_image(path):
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


def same_image(folder, document):
    document["frames"][2]["file_path"] = "images/./cam_001.png"
    write_cameras(folder, document)


def other_size(folder, document):
    document["frames"][2] |= {"w": 20, "h": 20}
    save_as("RGBA", (20, 20))(folder / "images" / "cam_002.png")
    write_cameras(folder, document)


# name -> (corruption of a good scene of 4 views, error message); raised on opening
BAD_IMAGE_FILES = {
    "pipe": (image_0(pipe), f"{VIEW}: not a file; every camera needs its own image"),
    "missing image": (
        image_0(remove),
        f"{VIEW}: the image file does not exist; every camera needs its own image",
    ),
    "extra camera": (
        extra_camera,
        "scene s, view 4 ({folder}/images/cam_004.png): the image file does not "
        "exist; every camera needs its own image",
    ),
    "missing cameras": (
        missing_camera,
        f"{SCENE}: 2 images in images have no camera (first: 'cam_002.png'); "
        "remove them or add their cameras",
    ),
    "no image": (
        image_0(not_an_image),
        f"{VIEW}: not a readable PNG or JPEG file (cannot identify image file it)",
    ),
    "gray image": (
        image_0(save_as("L")),
        f"{VIEW}: image of Pillow mode L, expected RGB or RGBA",
    ),
    "RGB without mask": (
        image_0(save_as("RGB")),
        f'{VIEW}: RGB image without a "mask_path": add one, or store RGBA, so that '
        "the pixels of the object are known",
    ),
    "alpha and mask": (
        frame_0(mask_path="images/cam_001.png"),
        f'{VIEW}: the image has an alpha channel and a "mask_path"; the mask must '
        "come from exactly one of them",
    ),
    "65 megapixels": (
        image_0(header_only(65_000, 1000)),
        f"{VIEW}: the header says 65000 x 1000 px; at most 64 megapixels are allowed",
    ),
    "90 megapixels": (
        image_0(header_only(90_000, 1000)),
        f"{VIEW}: the header says more than the 64 megapixels allowed",
    ),
    "10 gigapixels": (
        image_0(header_only(100_000, 100_000)),
        f"{VIEW}: the header says more than the 64 megapixels allowed",
    ),
    "header differs from camera": (
        image_0(header_only(25, 24)),
        f"{VIEW}: the image is 25 x 24 px, but its camera is for 24 x 24 px" + RESIZED,
    ),
    "camera differs from header": (
        frame_0(w=48, h=48),
        f"{VIEW}: the image is 24 x 24 px, but its camera is for 48 x 48 px" + RESIZED,
    ),
    "same image": (
        same_image,
        f"{FILE}: duplicate frames: views 1 and 2 have the same image",
    ),
    "two sizes": (
        other_size,
        f"{FILE}: view 2 is 20 x 20 px, view 0 is 24 x 24; all images of a scene "
        "need the same size",
    ),
    "absolute path": (
        frame_0(file_path="/etc/passwd"),
        f"{JSON}: \"file_path\" '/etc/passwd' must be relative to the scene folder",
    ),
    "parent path": (
        frame_0(file_path="images/../../x.png"),
        f'{JSON}: "file_path" \'images/../../x.png\' contains "..", which is not '
        "allowed",
    ),
    "link out": (
        image_0(link_out),
        f"{JSON}: \"file_path\" 'images/cam_000.png' leaves the "
        "scene folder through a symbolic link",
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
        "scene s, view 0 ({folder}/a ?[31mscene t is fine): the image file does "
        "not exist; every camera needs its own image",
    ),
    "long path": (
        frame_0(file_path="a" * 2000),
        f'{JSON}: "file_path" must be a path of 1 to 1023 characters',
    ),
    "long name": (
        frame_0(file_path="a" * 300),
        "scene s, view 0 ({folder}/" + "a" * 300 + "): the image file does not "
        "exist; every camera needs its own image",
    ),
    "no path": (
        without("file_path"),
        f'{JSON}: "file_path" must be a path of 1 to 1023 characters',
    ),
}


@pytest.mark.parametrize("name", BAD_IMAGE_FILES)
def test_a_bad_image_file_raises_with_one_line(tmp_path, name):
    corrupt, expected = BAD_IMAGE_FILES[name]
    line = error_of(tmp_path / "s", corrupt)
    assert line == expected.replace("{folder}", str(tmp_path / "s"))


def depth_0(save):
    return lambda folder, document: save(folder / "depths" / "cam_000.png")


def set_orientation(path, orientation=6):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.open(path).save(path, exif=exif)


def small_mask(folder, document):
    """A mask stored as 0 and 1 instead of 0 and 255."""
    Image.new("RGB", (24, 24)).save(folder / "images" / "cam_000.png")
    Image.new("L", (24, 24), 1).save(folder / "mask.png")
    frame_0(mask_path="mask.png")(folder, document)


# the same for errors that are raised on decoding
BAD_PIXELS = {
    "truncated": (
        image_0(truncate),
        f"{VIEW}: truncated or damaged image (image file is truncated)",
    ),
    "header without pixels": (
        image_0(header_only(24, 24)),
        f"{VIEW}: truncated or damaged image (image file is truncated "
        "(0 bytes not processed))",
    ),
    "empty mask": (
        image_0(save_as("RGBA")),
        f"{VIEW}: empty mask: no value is above 127 of 255 (the highest is 0)",
    ),
    "mask of 0 and 1": (
        small_mask,
        "scene s, view 0 ({folder}/mask.png): empty mask: no value is above 127 of "
        "255 (the highest is 1)",
    ),
    "EXIF orientation": (
        image_0(set_orientation),
        f"{VIEW}: EXIF orientation 6: viewers rotate the image, but the camera belongs "
        "to the stored pixels; remove the EXIF orientation",
    ),
    "missing depth": (
        depth_0(remove),
        f"{DEPTH}: the image file does not exist; every camera needs its own image",
    ),
    "depth of 8 bits": (
        depth_0(save_as("L")),
        f"{DEPTH}: image of Pillow mode L, expected I;16",
    ),
    "depth of another size": (
        depth_0(save_as("I;16", (12, 12))),
        f"{DEPTH}: the image is 12 x 12 px, but its camera is for 24 x 24 px" + RESIZED,
    ),
}


@pytest.mark.parametrize("name", BAD_PIXELS)
def test_bad_pixels_raise_with_one_line(tmp_path, name):
    corrupt, expected = BAD_PIXELS[name]
    line = error_of(tmp_path / "s", corrupt, lambda scene: scene.take(np.arange(4)))
    assert line == expected.replace("{folder}", str(tmp_path / "s"))


@pytest.mark.parametrize("orientation", [0, 1])  # unknown, upright
def test_an_upright_image_is_accepted(tmp_path, orientation):
    write_scene(tmp_path / "s")
    set_orientation(tmp_path / "s" / "images" / "cam_000.png", orientation)
    assert open_source(tmp_path / "s")[0].take(np.arange(1)).rgba.any()


def test_a_folder_without_scenes_raises(tmp_path):
    nowhere = tmp_path / "nowhere"
    assert line_of(lambda: open_source(nowhere)) == (
        f"{nowhere}: there is no such folder or list of scene folders"
    )
    assert line_of(lambda: open_source(tmp_path)) == (
        f"{tmp_path}: contains no scene; a scene is a folder with opencv_cameras.json "
        "or transforms.json"
    )
    write_scenes(tmp_path, 2, num_views=2)
    (tmp_path / "notes").mkdir()
    assert line_of(lambda: open_source(tmp_path)) == (
        f"{tmp_path}/notes: contains neither of opencv_cameras.json and "
        "transforms.json; a scene needs exactly one camera file"
    )


def test_bad_lists_raise(tmp_path):
    write_scenes(tmp_path, 1, num_views=2)
    path = tmp_path / "list.txt"
    path.write_text("000\n\n001\n")
    line = line_of(lambda: open_source(path))
    assert line == f"{path}, line 3: '001' is not a folder"
    path.write_text("000\n./000\n")
    line = line_of(lambda: open_source(path))
    assert line == f"{path}: scene folder {tmp_path}/000 is listed twice; remove one"
    path.write_bytes(b"\xff\xfe\x00")
    line = line_of(lambda: open_source(path))
    assert line == f"{path}: not a readable list of scene folders"
    path.write_text("a" * 5000)
    assert "is not a folder" in line_of(lambda: open_source(path))


def test_a_nerf_path_without_extension_cannot_leave_the_folder(tmp_path):
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
    assert "leaves the scene folder through a symbolic link" in line_of(
        lambda: open_source(folder)[0]
    )
