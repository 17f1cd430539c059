"""Fixtures of the renderer's tests."""

import pytest

from facelift_jax.render import rasterize_pallas


@pytest.fixture(scope="module")
def one_saved_slice():
    """One slice whose lists are saved for the backward pass, instead of three.

    Every saved slice is compiled as code of its own, so this takes a third off the time
    to compile the interpreted kernels. The golden tests run with all three.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasterize_pallas, "_NUM_SAVED_SLICES", 1)
        yield
