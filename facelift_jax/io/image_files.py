"""PNG and mp4 files, written atomically."""

from pathlib import Path

import av
import av.error
import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from facelift_jax.io import atomic


def write_png(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG file atomically."""
    with atomic.replaced(Path(path)) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def write_video(
    path: str | Path, frames: UInt8[np.ndarray, "f h w 3"], fps: int
) -> None:
    """Writes an H.264 mp4 (yuv420p, CRF 18) atomically.

    Raises:
      ValueError: no frames, or odd sides, which yuv420p does not support.
      RuntimeError: the file cannot be encoded or written; one line.
    """
    path = Path(path)
    count, height, width, _ = frames.shape
    if not count or height % 2 or width % 2:
        raise ValueError(
            f"{path}: H.264 needs frames with even sides, found {count} of "
            f"{width} x {height} px"
        )
    try:
        # an absolute path is never taken for a URL or an option
        with atomic.replaced(path.absolute()) as partial:
            _encode(partial, frames, fps)
    except (av.error.FFmpegError, OSError) as error:
        raise RuntimeError(f"{path}: cannot write the video: {error}") from error


def _encode(path: Path, frames: UInt8[np.ndarray, "f h w 3"], fps: int) -> None:
    settings = {"movflags": "+faststart"}  # browsers can play it while it loads
    with av.open(str(path), "w", format="mp4", options=settings) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def to_uint8(values: Float[jax.Array | np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """[0, 1] to 0 .. 255, clipped."""
    return np.rint(np.clip(np.asarray(values), 0, 1) * 255).astype(np.uint8)
