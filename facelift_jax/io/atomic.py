"""Files that are whole under their name, or not there."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".partial"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; takes its place unless the block raises."""
    partial = path.with_name(path.name + SUFFIX)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or leaves the old one."""
    with replaced(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file or leaves the old one."""
    write_bytes(path, text.encode())
