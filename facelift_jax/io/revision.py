"""The git revision of the running sources."""

import subprocess
from pathlib import Path


def source_revision() -> str | None:
    """Commit of the sources, with "+changes" if they differ; None outside git."""
    here, name = Path(__file__).parent, Path(__file__).name
    # An installed copy may be inside the repository of another project.
    if _git(here, "ls-files", "--error-unmatch", name) is None:
        return None
    commit = _git(here, "rev-parse", "HEAD")
    package = str(here.parent)
    is_changed = _git(here, "status", "--porcelain", "--", package)
    return f"{commit}+changes" if commit and is_changed else commit


def _git(directory: Path, *arguments: str) -> str | None:
    """Output of a git command; None if it fails or git is not installed."""
    command = ["git", "-C", str(directory), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
