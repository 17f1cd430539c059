"""A tiny scene for every test that only looks at it."""

import pytest
from tiny_scenes import write_scene

from facelift_jax.data.scenes import open_source


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder of a scene of 8 views, the first three flagged as inputs."""
    folder = tmp_path_factory.mktemp("scenes") / "ball"
    write_scene(folder)
    return folder


@pytest.fixture(scope="session")
def scene(folder):
    return open_source(folder)[0]
