"""Scenes on disk as a random-access source: `open_source(path)[i]` is one scene.

Nothing is decoded before it is needed: a scene knows its cameras at once and its
pictures when they are taken.
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
    read_layout,
)
from facelift_jax.data.io import DataError, ScenePath, decode_image, located
from facelift_jax.data.packed import PackedScene, is_packed, open_packed
from facelift_jax.structs import Cameras


@dataclasses.dataclass(frozen=True)
class Scene:
    """Calibrated pictures of one object.

    Attributes:
      name: unique in its source and fit for a file's name.
      path: the scene's folder.
      rgba: straight (not premultiplied) alpha; alpha is the object's coverage.
      depths: camera-z depth in world units, 0 for background; or None.
      cameras: [v] NumPy float32, OpenCV axes.
      is_input: the views flagged as inputs on disk; all False where nothing is flagged.
      index: position in the source, the `scene_id` of batches.
    """

    name: str
    path: ScenePath
    rgba: UInt8[np.ndarray, "v h w 4"]
    depths: Float[np.ndarray, "v h w 1"] | None
    cameras: Cameras
    is_input: Bool[np.ndarray, "v"]
    index: int = 0

    def take(self, views: Int[np.ndarray, "u"]) -> "Scene":
        """The scene with only these views, in this order."""
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
    """A `Scene` whose pictures are still on disk: same attributes, decoded when asked.

    `take` decodes the views it is given and no others.
    """

    name: str
    path: ScenePath
    frames: tuple[Frame, ...]
    depth_unit: float | None
    origin: Origin = NO_ORIGIN
    index: int = 0

    @functools.cached_property
    def cameras(self) -> Cameras:
        """Cameras over [v], NumPy float32, OpenCV axes."""
        viewmats = np.stack([frame.viewmat for frame in self.frames])
        Ks = np.stack([frame.K for frame in self.frames])
        return Cameras(
            viewmats.astype(np.float32),
            Ks.astype(np.float32),
            self.frames[0].width,
            self.frames[0].height,
        )

    @functools.cached_property
    def is_input(self) -> Bool[np.ndarray, "v"]:
        """The views flagged as inputs; all False where the scene flags nothing."""
        return np.array([frame.split == "input" for frame in self.frames])

    @property
    def rgba(self) -> UInt8[np.ndarray, "v h w 4"]:
        """All pictures, decoded anew at each access."""
        return np.stack([self._read_rgba(view) for view in range(len(self.frames))])

    @property
    def depths(self) -> Float[np.ndarray, "v h w 1"] | None:
        """All depth maps, decoded anew at each access; None without depth."""
        if self.depth_unit is None:
            return None
        return np.stack([self._read_depth(view) for view in range(len(self.frames))])

    def take(self, views: Int[np.ndarray, "u"]) -> Scene:
        """The scene with only these views, in this order, decoded.

        Raises:
          DataError: a picture is missing, damaged or of the wrong kind, or its mask is
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
        picture = self._decode(view, frame.picture, modes)
        if frame.mask is not None:
            mask = self._decode(view, frame.mask, ("L", "1"))
            picture = np.concatenate([picture, mask[..., None]], axis=-1)
        highest = picture[..., 3].max()
        if highest <= 127:
            raise DataError(
                f"scene {self.name}, view {view} ({frame.mask or frame.picture}): "
                "empty mask: no pixel's coverage is above one half (the highest value "
                f"is {highest} of 255)"
            )
        return picture

    def _read_depth(self, view: int) -> Float[np.ndarray, "h w 1"]:
        path = self.frames[view].depth
        assert path is not None  # a layout has a depth unit only with all depths
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
    """Scene folders by position; a scene is checked and read when it is asked for.

    Attributes:
      folders: of the scenes, or their places in packed sets.
      names: of the scenes.
      has_depth: False: scenes are taken without their depth maps.
      shares: of a mix of sets that follow one another: how many scenes each has, and
        its share of the examples that are drawn, in any unit; (): one set.
      violations: how many fail the data checks; None: not asked.
    """

    folders: tuple[Path | PackedScene, ...]
    names: tuple[str, ...]
    has_depth: bool = True
    shares: tuple[tuple[int, float], ...] = ()
    violations: int | None = None

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> StoredScene:
        """Scene `index`, its camera file and picture headers checked.

        Raises:
          DataError: anything about it is not as it must be; one line.
        """
        folder, name = self.folders[index], self.names[index]
        if isinstance(folder, PackedScene):
            folder = folder.load()
        layout = read_layout(folder, name)
        if not self.has_depth:
            layout = layout._replace(depth_unit=None)
        index = range(len(self))[index]
        return StoredScene(name, folder, *layout, index)

    @property
    def digest(self) -> str:
        """Sixteen hex digits (of SHA-256) that stand for the scenes and their order.

        A function of `names` alone: the same in every process and place that holds the
        same scenes, another one as soon as a scene comes, goes, moves or is renamed.
        """
        # no file's name holds a zero byte, so no two tuples of names join alike
        joined = "\0".join(self.names).encode(errors="surrogateescape")
        return hashlib.sha256(joined).hexdigest()[:16]

    def __repr__(self) -> str:
        """The same in every process and place that holds the same scenes."""
        return f"FolderSource({len(self)} scenes, {self.digest})"


def open_source(path: str | os.PathLike[str]) -> FolderSource:
    """Opens a folder of scene folders, one, a text list of them, or a packed set.

    A list names one scene folder a line, absolute or relative to the list; empty lines
    and lines that start with # say nothing. Scenes of a folder are ordered by name,
    those of a list as listed. Folders whose name starts with a dot are not scenes.

    Raises:
      DataError: there is no scene, one is named twice, or one lacks its camera file.
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
            f"{path}: no scene found; a scene is a folder with {CAMERA_FILES[0]} or "
            f"{CAMERA_FILES[1]}"
        )
    for folder in folders:
        camera_file(folder)
    real = [os.path.realpath(folder) for folder in folders]
    root = os.path.commonpath([os.path.dirname(folder) for folder in real])
    # names end up in the names of files
    names = [os.path.relpath(folder, root).replace(os.sep, "--") for folder in real]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{path}: scene folder {real[names.index(twice[0])]} is named twice"
        )
    return FolderSource(tuple(folders), tuple(names))


def split_source(
    source: FolderSource, num_held_out: int
) -> tuple[FolderSource, FolderSource]:
    """Training scenes, and the last `num_held_out` scenes, never to be trained on.

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
    """The cameras of these views, in this order; of a single view without its axis."""
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
    """One set of a run: where it is, its weight, and its scenes of both sides."""

    path: Path
    weight: float
    train: FolderSource
    held_out: FolderSource


def set_name(path: Path) -> str:
    """What a set is called in a mix: the last part of its path."""
    return os.path.basename(os.path.realpath(path))
