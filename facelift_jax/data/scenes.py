"""Scenes on disk as a random-access source: `open_source(path)[i]` is one scene.

Opening a scene reads its cameras and image headers; `take` decodes its images. Camera
poses stay float64, as they are stored, until an example is made.
"""

import collections
import dataclasses
import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from facelift_jax.data.formats import (
    CAMERA_FILES,
    NO_ORIGIN,
    Frame,
    Origin,
    camera_file,
    read_scene_format,
)
from facelift_jax.data.io import DataError, ScenePath, decode_image, located
from facelift_jax.data.packed import PackedScene, is_packed, open_packed
from facelift_jax.structs import Cameras


@dataclasses.dataclass(frozen=True)
class Scene:
    """Calibrated images of one object.

    Attributes:
      name: unique in its source; a valid file name.
      path: the scene's folder.
      rgba: straight (not premultiplied) alpha; alpha is the coverage by the object.
      depths: camera-z depth in world units, 0 for background; or None.
      cameras: [v] NumPy float64, OpenCV axes.
      is_input: the views marked as inputs on disk; all False if none is marked.
      index: position in the source; the `scene_id` of batches.
    """

    name: str
    path: ScenePath
    rgba: UInt8[np.ndarray, "v h w 4"]
    depths: Float[np.ndarray, "v h w 1"] | None
    cameras: Cameras
    is_input: Bool[np.ndarray, "v"]
    index: int = 0

    def take(self, views: Int[np.ndarray, "u"]) -> "Scene":
        """The scene with these views only, in this order."""
        depths = None if self.depths is None else self.depths[views]
        return dataclasses.replace(
            self,
            rgba=self.rgba[views],
            depths=depths,
            cameras=take_cameras(self.cameras, views),
            is_input=self.is_input[views],
        )


@dataclasses.dataclass(frozen=True)
class StoredScene:
    """A scene whose images are still on disk; has the attributes of `Scene`.

    `take` decodes the given views only.
    """

    name: str
    path: ScenePath
    frames: tuple[Frame, ...]
    depth_unit: float | None
    origin: Origin = NO_ORIGIN
    index: int = 0

    @functools.cached_property
    def cameras(self) -> Cameras:
        """Cameras over [v], NumPy float64, OpenCV axes."""
        return Cameras(
            np.stack([frame.viewmat for frame in self.frames]),
            np.stack([frame.K for frame in self.frames]),
            self.frames[0].width,
            self.frames[0].height,
        )

    @functools.cached_property
    def is_input(self) -> Bool[np.ndarray, "v"]:
        """The views marked as inputs on disk; all False if none is marked."""
        return np.array([frame.role == "input" for frame in self.frames])

    @property
    def rgba(self) -> UInt8[np.ndarray, "v h w 4"]:
        """All images; decoded at every access."""
        return np.stack([self._read_rgba(view) for view in range(len(self.frames))])

    @property
    def depths(self) -> Float[np.ndarray, "v h w 1"] | None:
        """All depth maps, decoded at every access; None for a scene without depth."""
        if self.depth_unit is None:
            return None
        return np.stack([self._read_depth(view) for view in range(len(self.frames))])

    def take(self, views: Int[np.ndarray, "u"]) -> Scene:
        """The scene with these views only, in this order, decoded.

        Raises:
          DataError: an image is missing, damaged or of the wrong kind, or its mask is
            empty; one line with scene, view and path.
        """
        depths = None
        if self.depth_unit is not None:
            depths = np.stack([self._read_depth(view) for view in views.tolist()])
        return Scene(
            name=self.name,
            path=self.path,
            rgba=np.stack([self._read_rgba(view) for view in views.tolist()]),
            depths=depths,
            cameras=take_cameras(self.cameras, views),
            is_input=self.is_input[views],
            index=self.index,
        )

    def _read_rgba(self, view: int) -> UInt8[np.ndarray, "h w 4"]:
        frame = self.frames[view]
        modes = ("RGBA",) if frame.mask is None else ("RGB",)
        image = self._decode(view, frame.image, modes)
        if frame.mask is not None:
            mask = self._decode(view, frame.mask, ("L", "1"))
            image = np.concatenate([image, mask[..., None]], axis=-1)
        highest = image[..., 3].max()
        if highest <= 127:
            raise DataError(
                f"scene {self.name}, view {view} ({frame.mask or frame.image}): "
                f"empty mask: no value is above 127 of 255 (the highest is {highest})"
            )
        return image

    def _read_depth(self, view: int) -> Float[np.ndarray, "h w 1"]:
        path = self.frames[view].depth
        assert path is not None  # a depth unit implies a depth map for every frame
        steps = self._decode(view, path, ("I;16",))
        return (steps * np.float32(self.depth_unit))[..., None]

    def _decode(
        self, view: int, path: ScenePath, modes: tuple[str, ...]
    ) -> Shaped[np.ndarray, "h w *c"]:
        frame = self.frames[view]
        with located(f"scene {self.name}, view {view} ({path})"):
            return decode_image(path, (frame.width, frame.height), modes)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Scene folders by position; a scene is read and checked at every access.

    Attributes:
      folders: the folders of the scenes, or their records in packed sets.
      names: the names of the scenes.
      has_depth: if False, depth maps are ignored.
      shares: for a mix of consecutive sets, the number of scenes of each set and its
        weight among the drawn examples (weights are relative); () for a single set.
      violations: number of scenes that fail the data checks; None if not checked.
    """

    folders: tuple[Path | PackedScene, ...]
    names: tuple[str, ...]
    has_depth: bool = True
    shares: tuple[tuple[int, float], ...] = ()
    violations: int | None = None

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> StoredScene:
        """Scene `index`, with its camera file and image headers checked.

        Raises:
          DataError: the first error in the scene; one line.
        """
        folder, name = self.folders[index], self.names[index]
        if isinstance(folder, PackedScene):
            folder = folder.load()
        scene_format = read_scene_format(folder, name)
        if not self.has_depth:
            scene_format = scene_format._replace(depth_unit=None)
        index = range(len(self))[index]
        return StoredScene(name, folder, *scene_format, index)

    @property
    def digest(self) -> str:
        """Sixteen hex digits of SHA-256 that identify the scenes and their order.

        A function of `names` only: equal in every process and location with the same
        scenes, different if a scene is added, removed, reordered or renamed.
        """
        # file names contain no zero byte, so different tuples give different strings
        joined = "\0".join(self.names).encode(errors="surrogateescape")
        return hashlib.sha256(joined).hexdigest()[:16]

    def __repr__(self) -> str:
        """Equal in every process and location with the same scenes."""
        return f"FolderSource({len(self)} scenes, {self.digest})"


def open_source(path: str | os.PathLike[str]) -> FolderSource:
    """Opens a folder of scene folders, one scene folder, a list file, or a packed set.

    A list file is text with one scene folder per line, absolute or relative to the
    file; empty lines and lines that start with # are ignored. Scenes of a folder are
    sorted by name, scenes of a list keep its order. Hidden folders are ignored.

    Raises:
      DataError: there is no scene, a scene is listed twice, or a camera file is
        missing.
    """
    path = Path(path)
    if path.is_file():
        folders = _read_list(path)
    elif is_packed(path):
        scenes = open_packed(path)
        return FolderSource(scenes, tuple(scene.name for scene in scenes))
    elif path.is_dir():
        folders = _scene_folders(path)
    else:
        raise DataError(f"{path}: there is no such folder or list of scene folders")
    if not folders:
        raise DataError(
            f"{path}: contains no scene; a scene is a folder with {CAMERA_FILES[0]} or "
            f"{CAMERA_FILES[1]}"
        )
    for folder in folders:
        camera_file(folder)
    real = [os.path.realpath(folder) for folder in folders]
    root = os.path.commonpath([os.path.dirname(folder) for folder in real])
    # a scene name is used as a file name
    names = [os.path.relpath(folder, root).replace(os.sep, "--") for folder in real]
    counts = collections.Counter(names)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        folder = real[names.index(repeated[0])]
        raise DataError(f"{path}: scene folder {folder} is listed twice; remove one")
    return FolderSource(tuple(folders), tuple(names))


def split_source(
    source: FolderSource, num_held_out: int
) -> tuple[FolderSource, FolderSource]:
    """Scenes to train on, and the last `num_held_out` scenes, which are held out.

    Raises:
      ValueError: either side would be empty.
    """
    if not 0 < num_held_out < len(source):
        raise ValueError(
            f"{source}: cannot hold out {num_held_out} of {len(source)} scenes; each "
            "side needs at least one"
        )
    cut = len(source) - num_held_out
    train = FolderSource(source.folders[:cut], source.names[:cut])
    held_out = FolderSource(source.folders[cut:], source.names[cut:])
    logging.info(
        "%d scenes to train on, %d held out (%s to %s)",
        len(train),
        len(held_out),
        held_out.names[0],
        held_out.names[-1],
    )
    return train, held_out


def take_cameras(cameras: Cameras, views: Int[np.ndarray, "u"] | int) -> Cameras:
    """The cameras of these views, in this order; an int drops the view axis."""
    return Cameras(
        cameras.viewmats[views], cameras.Ks[views], cameras.width, cameras.height
    )


def _scene_folders(path: Path) -> list[Path]:
    if any((path / name).is_file() for name in CAMERA_FILES):
        return [path]
    folders = (p for p in path.iterdir() if p.is_dir() and p.name[0] != ".")
    return sorted(folders)


def _read_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable list of scene folders") from error
    folders = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        folder = path.parent / line
        if not os.path.isdir(folder):
            raise DataError(f"{path}, line {number}: {line!r} is not a folder")
        folders.append(folder)
    return folders


class Part(NamedTuple):
    """One data set of a run: its path, its weight, and its two groups of scenes."""

    path: Path
    weight: float
    train: FolderSource
    held_out: FolderSource


def set_name(path: Path) -> str:
    """The name of a set in a mix: the last component of its path."""
    return os.path.basename(os.path.realpath(path))
