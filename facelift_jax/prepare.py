"""Prepares scenes from a calibrated recording: videos or images, and masks.

    python -m facelift_jax.prepare --calibration calibration.toml --pictures videos \
        --masks masks --out data/mouse --scenes 1600

For every camera of the calibration, `videos` and `masks` contain a video or a folder
of images with the camera's name. Frames with the same number show the same time. A
scene is one timestamp: images are undistorted, cameras are rotated about their own
centers to look at the object, and the whole rig is moved and scaled as one. The first
timestamps are for training, the next for validation and the last for testing, with gaps
between them. Run the same command again to resume after an interruption.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from facelift_jax.data.recordings.prepare_scenes import prepare_scenes
from facelift_jax.data.recordings.scenes import PrepareOptions
from facelift_jax.io import command


def parse(arguments: list[str]) -> Any:
    """The command's flags."""
    parser = command.Parser(
        prog="python -m facelift_jax.prepare",
        description="Prepares scenes from calibrated videos or images and masks: "
        "undistorted, rotated towards the object, scaled as one rig, split by time. "
        "Resumable: run the same command again to finish.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, path = parser.add_argument, {"type": Path, "required": True}
    add(
        "--calibration", **path, help="opencv_cameras.json, anipose .toml, label3d .mat"
    )
    add(
        "--pictures",
        **path,
        dest="images",
        help="folder with a video NAME.mp4 or a folder NAME of images per camera",
    )
    add("--masks", **path, help="folder of masks in the same form; the object is white")
    add("--out", **path, help="folder of the scenes, new or from an earlier run")
    add("--scenes", type=int, required=True, help="number of scenes, evenly spaced")
    default_size = PrepareOptions.size
    add("--size", type=int, default=default_size, help="side of the images in pixels")
    add("--cameras", nargs="+", metavar="NAME", help="cameras to use; None: all")
    add("--fps", type=float, help="frames per second of image files, not of videos")
    numbers = {
        "share": "largest fraction of an image's width that the object fills",
        "radius": "mean distance of the cameras from the object in the scenes",
        "val": "fraction of the timestamps for validation",
        "test": "fraction of the timestamps, at the end, for the final test",
        "gap": "smallest time between train, val and test in seconds",
        "max-upscale": "largest factor by which images may be upscaled",
    }
    for name, text in numbers.items():
        default = getattr(PrepareOptions, name.replace("-", "_"))
        add(f"--{name}", type=float, default=default, help=text)
    add("--workers", type=int, help="number of threads; None: one per core")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Runs the command.

    Raises:
      ValueError, OSError: one line that says what to change.
    """
    flags = vars(parse(arguments))
    settings = {field.name: flags.pop(field.name) for field in fields(PrepareOptions)}
    out = flags["out"]
    prepare_scenes(
        **flags,
        options=PrepareOptions(**settings),
        progress=lambda line: print(line, flush=True),
    )
    held_out = sum(len((out / f"{p}.txt").read_text().split()) for p in ("val", "test"))
    train = f"--config.data.path={out} --config.data.num_held_out_scenes="
    print(
        f"{out}: train with {train}{held_out}; the last scenes are val and test"
        if held_out
        else f"{out}: no val or test scenes to evaluate on: prepare again with --val "
        f"or --test, or hold out the last N scenes with {train}N"
    )


if __name__ == "__main__":
    command.run("prepare", main)
