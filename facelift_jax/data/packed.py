"""Reads packed sets: scenes in ArrayRecord files, written by `facelift_jax.data.pack`.

A packed set is a folder in the format of TensorFlow Datasets with one record per scene:
the scene's name and its unchanged files (camera file, images, masks, depth maps).
`metadata.json` holds the names and fingerprints of all scenes, so that opening a set
reads no record.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, runtime_checkable

from facelift_jax.data.formats import camera_file
from facelift_jax.data.io import (
    DataError,
    PackedPath,
    ScenePath,
    located,
    path_inside,
    read_json,
)
from facelift_jax.io.extras import extra

NAME = SPLIT = "scenes"  # the names of the TFDS data set and of its only split
TFDS_INFO = "dataset_info.json"  # TFDS writes this file last
METADATA = "metadata.json"
_SHARD = f"{NAME}-{SPLIT}.array_record-"


@runtime_checkable
class Records(Protocol):
    """Random access to serialized records, as `ArrayRecordDataSource` gives it."""

    def __len__(self) -> int: ...

    def __getitem__(self, record_key: Any, /) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class PackedScene:
    """One scene of a packed set; its record has not been read.

    Attributes:
      root: the folder of the set.
      records: all serialized records of the set.
      index: the index of the scene's record.
      name: the name of the scene.
      fingerprint: the scene's `fingerprint`.
    """

    root: Path
    records: Records = dataclasses.field(repr=False)
    index: int
    name: str
    fingerprint: str

    def __str__(self) -> str:
        return str(self.root / self.name)

    def load(self) -> PackedPath:
        """The scene's folder, read into memory.

        Raises:
          DataError: the record is damaged or belongs to another scene.
        """
        with located(f"scene {self.name} ({self})"):
            try:
                example = features().deserialize_example_np(self.records[self.index])
                name = example["name"].decode()
                files = example["files"]
                paths = [content.decode() for content in files["path"]]
            except Exception as error:  # the libraries document no error classes
                raise DataError(f"the record cannot be read ({error})") from error
            root = PackedPath(self.root / self.name, PurePosixPath(), {})
            inner = [path_inside(root, path).inner for path in paths]
            contents = dict(zip(inner, files["content"], strict=True))
            folder = dataclasses.replace(root, files=contents)
            if name != self.name or fingerprint(folder) != self.fingerprint:
                raise DataError(
                    f"{METADATA} does not match the records; pack the set again"
                )
        return folder


def fingerprint(folder: ScenePath | PackedScene) -> str:
    """Identifies a scene independently of its path: a digest of its camera file."""
    if isinstance(folder, PackedScene):
        return folder.fingerprint
    return hashlib.sha256(camera_file(folder).read_bytes()).hexdigest()[:16]


@functools.cache
def features() -> Any:
    """The features of a record, for TensorFlow Datasets."""
    with extra("train"):
        import tensorflow_datasets as tfds  # here, because the import takes a second

    text = tfds.features.Text()  # holds any bytes
    files = tfds.features.Sequence({"path": text, "content": text})
    return tfds.features.FeaturesDict({"name": text, "files": files})


def is_packed(path: Path) -> bool:
    """Whether the folder is a packed set."""
    return (path / TFDS_INFO).is_file()


def open_packed(root: Path) -> tuple[PackedScene, ...]:
    """The scenes of a packed set.

    Raises:
      DataError: its files are damaged or inconsistent; one line.
      ImportError: the extra "train" is not installed.
    """
    with extra("train"):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

    with located(str(root / METADATA)):
        document = read_json(root / METADATA)
        names, stored = (_strings(document, key) for key in ("names", "fingerprints"))
        for name in names:
            is_plain = (
                "/" not in name and "\0" not in name and name[:1] not in ("", ".")
            )
            if not is_plain or len(name) > 255:
                raise DataError(f"{name[:40]!r} is not a valid scene name")
        if len(set(names)) < len(names) or len(stored) != len(names):
            raise DataError(
                f"{len(names)} names, {len(set(names))} of them different, and "
                f"{len(stored)} fingerprints; every scene needs one of each"
            )
    shards = sorted(root.glob(f"{_SHARD}*"))
    expected = [f"{_SHARD}{i:05}-of-{len(shards):05}" for i in range(len(shards))]
    if not shards or [shard.name for shard in shards] != expected:
        raise DataError(f"{root}: record files are missing; pack the set again")
    try:
        records = ArrayRecordDataSource([str(path) for path in shards])
        count = len(records)
    except Exception as error:  # ArrayRecord documents no error class
        raise DataError(f"{root}: a record file is damaged ({error})") from error
    if not 0 < count == len(names):
        raise DataError(
            f"{root}: {count} records for {len(names)} scenes; pack the set again"
        )
    pairs = enumerate(zip(names, stored, strict=True))
    return tuple(PackedScene(root, records, i, *pair) for i, pair in pairs)


def _strings(document: dict[str, Any], key: str) -> list[str]:
    strings = document.get(key)
    if not isinstance(strings, list) or not all(isinstance(x, str) for x in strings):
        raise DataError(f'"{key}" must be a list of strings')
    return strings
