"""Small sets of scenes on disk, one corruption of their cameras, and their files."""

import json

import numpy as np
from PIL import Image
from tiny_scenes import write_cameras, write_scene


def make_set(root, num_scenes=3):
    """Scenes with different colors."""
    for i in range(num_scenes):
        document = write_scene(root / f"{i:03}", num_views=5, depth=False)
        for frame in document["frames"]:
            path = root / f"{i:03}" / frame["file_path"]
            rgba = np.array(Image.open(path))
            rgba[..., 0] ^= np.uint8(i)
            Image.fromarray(rgba).save(path)
    return root


def invert_poses(folder):
    """Stores camera-to-world poses as "w2c"."""
    document = json.loads((folder / "opencv_cameras.json").read_text())
    for frame in document["frames"]:
        frame["w2c"] = np.linalg.inv(frame["w2c"]).tolist()
    write_cameras(folder, document)


def contents(folder):
    """Path in the folder -> bytes, of every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
