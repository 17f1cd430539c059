"""Scenes packed into ArrayRecord files: what such a set holds, and reading it.

A set is a folder as TensorFlow Datasets writes it, one record a scene: its name and its
files as they were, camera file, pictures, masks and depth maps. `metadata.json` has
the names and fingerprints of all scenes, so that nothing else is read before its time.
`facelift_jax.data.pack` makes it.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from facelift_jax.data.formats import camera_file
from facelift_jax.data.io import (
    DataError,
    PackedPath,
    ScenePath,
    located,
    path_inside,
    read_json,
)

NAME = SPLIT = "scenes"  # of the set, and of its one split, in TFDS' terms
MARKER = "dataset_info.json"  # TFDS writes it last
METADATA = "metadata.json"
_SHARD = f"{NAME}-{SPLIT}.array_record-"


@dataclasses.dataclass(frozen=True)
class PackedScene:
    """One scene of a packed set, nothing of it read yet.

    Attributes:
      root: the folder of the set.
      records: the records of the set.
      index: the scene's place among them.
      name: of the scene in its set.
      fingerprint: as `fingerprint` gives.
    """

    root: Path
    records: ArrayRecordDataSource = dataclasses.field(repr=False)
    index: int
    name: str
    fingerprint: str

    def __str__(self) -> str:
        return str(self.root / self.name)

    def load(self) -> PackedPath:
        """The scene's folder, in memory.

        Raises:
          DataError: the record is damaged, or of another scene.
        """
        with located(f"scene {self.name} ({self})"):
            try:
                example = features().deserialize_example_np(self.records[self.index])
                name = example["name"].decode()
                files = example["files"]
                paths = [content.decode() for content in files["path"]]
            except Exception as error:  # of three libraries, none of them documented
                raise DataError(f"not a readable record ({error})") from error
            root = PackedPath(self.root / self.name, PurePosixPath(), {})
            inner = [path_inside(root, path).inner for path in paths]
            contents = dict(zip(inner, files["content"], strict=True))
            folder = dataclasses.replace(root, files=contents)
            if name != self.name or fingerprint(folder) != self.fingerprint:
                raise DataError(f"{METADATA} is of other scenes than the records")
        return folder


def fingerprint(folder: ScenePath | PackedScene) -> str:
    """What tells a scene apart wherever it lies: a digest of its camera file."""
    if isinstance(folder, PackedScene):
        return folder.fingerprint
    return hashlib.sha256(camera_file(folder).read_bytes()).hexdigest()[:16]


@functools.cache
def features() -> Any:
    """What a record holds, in the terms of TensorFlow Datasets."""
    import tensorflow_datasets as tfds  # takes a second: only where it is needed

    text = tfds.features.Text()  # any bytes
    files = tfds.features.Sequence({"path": text, "content": text})
    return tfds.features.FeaturesDict({"name": text, "files": files})


def is_packed(path: Path) -> bool:
    """Whether a folder is a packed set."""
    return (path / MARKER).is_file()


def open_packed(root: Path) -> tuple[PackedScene, ...]:
    """The scenes of a packed set.

    Raises:
      DataError: its files do not belong together; one line.
    """
    with located(str(root / METADATA)):
        document = read_json(root / METADATA)
        names, marks = (_words(document, key) for key in ("names", "fingerprints"))
        for name in names:
            is_plain = (
                "/" not in name and "\0" not in name and name[:1] not in ("", ".")
            )
            if not is_plain or len(name) > 255:
                raise DataError(f"{name[:40]!r} cannot be a scene's name")
        if len(set(names)) < len(names) or len(marks) != len(names):
            raise DataError(
                f"{len(names)} names, {len(set(names))} of them different, and "
                f"{len(marks)} fingerprints; there is one of each a scene"
            )
    shards = sorted(root.glob(f"{_SHARD}*"))
    whole = [f"{_SHARD}{i:05}-of-{len(shards):05}" for i in range(len(shards))]
    if not shards or [shard.name for shard in shards] != whole:
        raise DataError(f"{root}: of its record files some are missing; pack it again")
    try:
        records = ArrayRecordDataSource([str(path) for path in shards])
        count = len(records)
    except Exception as error:  # ArrayRecord documents no class of its own
        raise DataError(f"{root}: a record file is damaged ({error})") from error
    if not 0 < count == len(names):
        raise DataError(
            f"{root}: {count} records of {len(names)} scenes; pack it again"
        )
    pairs = enumerate(zip(names, marks, strict=True))
    return tuple(PackedScene(root, records, i, *pair) for i, pair in pairs)


def _words(document: dict[str, Any], key: str) -> list[str]:
    words = document.get(key)
    if not isinstance(words, list) or not all(isinstance(x, str) for x in words):
        raise DataError(f'"{key}" must be a list of words')
    return words
