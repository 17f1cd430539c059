"""Files that are complete if they exist: written under another name, then renamed."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".partial"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces `path` unless the block raises."""
    partial = path.with_name(path.name + SUFFIX)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes the complete file, or leaves the old one unchanged."""
    with replaced(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes the complete file in UTF-8, or leaves the old one unchanged."""
    write_bytes(path, text.encode())
