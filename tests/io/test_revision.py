"""The revision of a checkout, of an installed copy and without git."""

import shutil
import subprocess

import pytest

from facelift_jax.io import revision
from facelift_jax.io.revision import source_revision


def git(directory, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    command = ["git", *identity, "-C", str(directory), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the module in a repository of its own, as `source_revision` sees it."""
    path = tmp_path / "repository/package/io/revision.py"
    path.parent.mkdir(parents=True)
    shutil.copy(revision.__file__, path)
    monkeypatch.setattr(revision, "__file__", str(path))
    return tmp_path / "repository"


def test_revision_of_a_checkout(package):
    git(package, "init", "-q")
    git(package, "add", "package")
    git(package, "commit", "-q", "-m", "first")
    commit = git(package, "rev-parse", "HEAD")
    assert source_revision() == commit
    (package / "notes.txt").touch()
    assert source_revision() == commit
    (package / "package/new.py").touch()
    assert source_revision() == f"{commit}+changes"


def test_an_installed_copy_has_no_revision(package):
    assert source_revision() is None
    git(package, "init", "-q")
    git(package, "commit", "-q", "--allow-empty", "-m", "another project")
    assert source_revision() is None


def test_no_git_no_revision(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert source_revision() is None
