"""Packs a set of scenes into ArrayRecord files in the format of TensorFlow Datasets.

    python -m facelift_jax.data.pack data/rodent-256 --out data/rodent-256-packed

The files of a scene are stored unchanged, and `open_source` reads the packed set like
the set it was made from. Neither packing nor reading needs TensorFlow.
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

with command.required_extra("pack", "train", __name__):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.writer import ExampleWriter
    from tensorflow_datasets.proto import tf_example_pb2

FORMAT = tfds.core.FileFormat.ARRAY_RECORD
SHARD_SCENES = 32  # TFDS holds one record file in memory
SOURCE = "source"  # the metadata key of the digest that changes with the source


class SortedWriter(ExampleWriter):
    """Writes equal bytes for equal records; the field order of TFDS varies by run."""

    def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
        """Called by TFDS with the serialized records of one file."""
        parse = tf_example_pb2.Example.FromString  # type: ignore[attr-defined]
        parsed = ((key, parse(record)) for key, record in examples)
        ordered = ((key, x.SerializeToString(deterministic=True)) for key, x in parsed)
        return super().write(path, ordered)


class PackedSceneBuilder(tfds.core.ShardBasedBuilder):
    """Writes one record per scene in the order of the source, 32 scenes per file."""

    VERSION = tfds.core.Version("1.0.0")
    name = NAME
    code_path = None  # keeps TFDS from looking for a file of download checksums

    def __init__(
        self,
        source: FolderSource,
        metadata: dict[str, Any],
        progress: Iterator[str],
        data_dir: Path,
    ):
        self._source, self._metadata, self._progress = source, metadata, progress
        super().__init__(data_dir=data_dir, file_format=FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Calibrated images of objects. A record holds the files of "
            "one scene folder; its opencv_cameras.json or transforms.json lists the "
            "other files with their cameras.",
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
            next(self._progress)
            yield index, record(self._source[index])


def record(scene: StoredScene) -> dict[str, Any]:
    """The record of a scene: its name and its files."""
    paths = [camera_file(scene.path)]
    for frame in scene.frames:
        paths += filter(None, (frame.image, frame.mask, frame.depth))
    inner = {os.path.relpath(str(path), str(scene.path)): path for path in paths}
    files = [{"path": at, "content": path.read_bytes()} for at, path in inner.items()]
    return {"name": scene.name, "files": files}


def pack(
    path: Path,
    out: Path,
    background: tuple[float, float, float],
    progress: Callable[[str], None],
) -> None:
    """Packs the set at `path` into the folder `out`, which appears when it is complete.

    The set must pass the data checks on `background`, RGB in [0, 1]. `progress` is
    called with lines of text during the work.

    Raises:
      DataError: a scene fails the data checks.
      ValueError: `out` exists and holds something else.
    """
    source = open_source(path)
    joined = "\0".join(source_digests(source)).encode()
    metadata = {
        "names": list(source.names),
        "fingerprints": [fingerprint(folder) for folder in source.folders],
        SOURCE: hashlib.sha256(joined).hexdigest()[:16],
    }
    staging = out.with_name(out.name + atomic.SUFFIX)
    if staging.exists():  # left by a killed run
        expected = {NAME, "downloads"}  # TFDS leaves the second one empty
        if {child.name for child in staging.iterdir()} - expected:
            raise ValueError(
                f"{staging}: exists and was not written by this command; remove it or "
                "choose another folder"
            )
        shutil.rmtree(staging)
    if out.exists():
        if is_packed(out) and read_marker(out / METADATA) == metadata:
            progress(f"{out}: already complete")
            return
        raise ValueError(
            f"{out}: exists and is not a packed set of {path} in its present state; "
            "remove it or choose another folder"
        )
    violations, line = find_violations(path, source, background, progress)
    if violations:
        raise DataError(line)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports on downloads
            names = with_progress(source.names, "pack", len(source), progress)
            builder = PackedSceneBuilder(source, metadata, names, staging)
            builder.download_and_prepare()
            next(names, None)  # reports the total time after the last scene
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
        description="Packs a set of scenes into a few ArrayRecord files, which can be "
        "used in place of the set. The folder appears when it is complete; after an "
        "interruption, run the same command again.",
    )
    add = parser.add_argument
    add("source", type=Path, help="folder of scenes, or list of scene folders")
    add("--out", type=Path, required=True, help="new folder for the packed set")
    parser.add_background()
    flags = parser.parse_args(arguments)
    # the stream itself: `pack` redirects sys.stdout
    show = functools.partial(print, file=sys.stdout, flush=True)
    pack(flags.source, flags.out, tuple(flags.background), show)


if __name__ == "__main__":
    command.run("pack", main)
