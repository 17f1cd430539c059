"""Renders Gaussians along a path of cameras."""

import jax
import numpy as np

from facelift_jax.structs import Cameras, Gaussians, RenderFn, RenderOutput

PATH_CHUNK = 8  # frames per call


def render_path(
    render_fn: RenderFn, gaussians: Gaussians, cameras: Cameras
) -> RenderOutput:
    """Frames [f] of Gaussians [n] from cameras [f], as NumPy arrays.

    Each call of `render_fn` renders `PATH_CHUNK` frames. All calls have the same
    shapes, so that a jitted `render_fn` compiles once.

    Raises:
      ValueError: the renderer dropped list entries (an explicit cap).
    """
    num_frames = len(cameras.viewmats)
    chunk = min(PATH_CHUNK, num_frames)
    chunks = []
    for start in range(0, num_frames, chunk):
        index = np.minimum(np.arange(start, start + chunk), num_frames - 1)
        part = jax.tree.map(lambda x, index=index: np.asarray(x)[index], cameras)
        output = jax.device_get(render_fn(gaussians, part))
        dropped = int(output.dropped.sum())
        if dropped:
            raise ValueError(
                f"path: the renderer dropped {dropped} entries in frames {start} "
                f"to {index[-1]}; set RenderConfig.max_entries to None"
            )
        rest = num_frames - start
        chunks.append(jax.tree.map(lambda x, rest=rest: x[:rest], output))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *chunks)
