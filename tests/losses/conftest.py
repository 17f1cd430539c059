"""The random scenes that the tests of this folder share."""

from random_scenes import make_scene

__all__ = ["make_scene"]
