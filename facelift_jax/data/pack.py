"""Packs a set of scenes into ArrayRecord files, as TensorFlow Datasets lays them out.

    python -m facelift_jax.data.pack data/rodent-256 --out data/rodent-256-packed

Every file of a scene goes in as it is, nothing is decoded, and `open_source` takes the
result for the set it was made of. TensorFlow is not needed, neither here nor to read.
"""

import contextlib
import functools
import hashlib
import io
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2

from facelift_jax.data.formats import camera_file
from facelift_jax.data.io import DataError
from facelift_jax.data.packed import (
    METADATA,
    NAME,
    SPLIT,
    features,
    fingerprint,
    is_packed,
)
from facelift_jax.data.scenes import FolderSource, StoredScene, open_source
from facelift_jax.data.validation.dataset_report import find_violations, source_digests
from facelift_jax.data.writing import read_marker
from facelift_jax.io import atomic, command
from facelift_jax.io.progress import with_progress

FORMAT = tfds.core.FileFormat.ARRAY_RECORD
SHARD_SCENES = 32  # TFDS holds one file of the set in memory
SOURCE = "source"  # in the metadata: what tells whether the source has changed


class SortedWriter(ExampleWriter):
    """Writes the same bytes for the same records; TFDS' own order differs by run."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Called by TFDS with the serialized records of a file."""
        parse = tf_example_pb2.Example.FromString  # type: ignore[attr-defined]
        parsed = ((key, parse(record)) for key, record in examples)
        ordered = ((key, x.SerializeToString(deterministic=True)) for key, x in parsed)
        return super().write(path, ordered)


class Scenes(tfds.core.ShardBasedBuilder):
    """One record a scene, in the order of the source; files of 32 scenes."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # there are no checksums of downloads to look for beside it

    def __init__(
        self,
        source: FolderSource,
        metadata: dict[str, Any],
        made: Iterator[str],
        data_dir: Path,
    ):
        self._source, self._metadata, self._made = source, metadata, made
        super().__init__(data_dir=data_dir, file_format=FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Calibrated pictures of objects, a scene a record: the files "
            "of its folder, of which opencv_cameras.json or transforms.json names the "
            "others and has their cameras.",
            features=features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(self._metadata),
        )

    def _example_writer(self) -> SortedWriter:
        return SortedWriter(FORMAT)

    def _shard_iterators_per_split(self, dl_manager: object) -> dict[str, list]:
        del dl_manager  # nothing is downloaded
        starts = range(0, len(self._source), SHARD_SCENES)
        return {SPLIT: [functools.partial(self._records, start) for start in starts]}

    def _records(self, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(start, min(start + SHARD_SCENES, len(self._source))):
            next(self._made)
            yield index, record(self._source[index])


def record(scene: StoredScene) -> dict[str, Any]:
    """What the record of a scene holds."""
    paths = [camera_file(scene.path)]
    for frame in scene.frames:
        paths += filter(None, (frame.picture, frame.mask, frame.depth))
    inner = {os.path.relpath(str(path), str(scene.path)): path for path in paths}
    files = [{"path": at, "content": path.read_bytes()} for at, path in inner.items()]
    return {"name": scene.name, "files": files}


def pack(
    path: Path,
    out: Path,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
) -> None:
    """Packs the set at `path` into the folder `out`, which is whole or not there.

    `progress` is called with one line of text now and then.

    Raises:
      DataError: a scene fails the data checks.
      ValueError: `out` holds something else.
    """
    source = open_source(path)
    joined = "\0".join(source_digests(source)).encode()
    metadata = {
        "names": list(source.names),
        "fingerprints": [fingerprint(folder) for folder in source.folders],
        SOURCE: hashlib.sha256(joined).hexdigest()[:16],
    }
    staging = out.with_name(out.name + atomic.SUFFIX)
    if staging.exists():  # of a run that was killed
        ours = {NAME, "downloads"}  # the second is TFDS', empty
        if {child.name for child in staging.iterdir()} - ours:
            raise ValueError(f"{staging}: not ours; remove it or choose another folder")
        shutil.rmtree(staging)
    if out.exists():
        if is_packed(out) and read_marker(out / METADATA) == metadata:
            progress(f"{out}: complete, left as it is")
            return
        raise ValueError(
            f"{out}: exists and is not {path} as it is now, packed; remove it or "
            "choose another folder"
        )
    violations, line = find_violations(path, source, background, progress)
    if violations:
        raise DataError(line)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads
            made = with_progress(source.names, "pack", len(source), progress)
            builder = Scenes(source, metadata, made, staging)
            builder.download_and_prepare()
            next(made, None)  # of the last scene: says how long all took
        os.replace(builder.data_dir, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = sum(file.stat().st_size for file in out.iterdir())
    progress(f"{out}: {len(source)} scenes, {size / 1e6:.1f} MB")


def main(arguments: list[str]) -> None:
    """The command.

    Raises:
      ValueError, OSError: one line saying what to change.
    """
    parser = command.Parser(
        prog="python -m facelift_jax.data.pack",
        description="Packs a set of scenes into a few ArrayRecord files, which are "
        "used wherever a set is. What is killed starts anew with the same command; "
        "the folder appears when it is complete.",
    )
    add = parser.add_argument
    add("source", type=Path, help="folder or list of scenes")
    add("--out", type=Path, required=True, help="folder of the packed set, new")
    parser.add_background()
    flags = parser.parse_args(arguments)
    say = functools.partial(print, file=sys.stdout, flush=True)  # this one, always
    pack(flags.source, flags.out, tuple(flags.background), say)


if __name__ == "__main__":
    command.run("pack", main)
