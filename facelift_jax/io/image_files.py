"""PNG and mp4 files that appear whole or not at all."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from facelift_jax.io import atomic


def write_png(path: str | Path, image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Writes a PNG that appears whole or not at all."""
    with atomic.replaced(Path(path)) as partial:
        Image.fromarray(image).save(partial, format="PNG")


def write_video(
    path: str | Path, frames: UInt8[np.ndarray, "f h w 3"], fps: int
) -> None:
    """Writes an H.264 mp4 (yuv420p) that appears whole or not at all.

    Raises:
      ValueError: no frames, or odd sides, which yuv420p cannot hold.
      RuntimeError: ffmpeg is missing or fails.
    """
    path = Path(path)
    count, height, width, _ = frames.shape
    if not count or height % 2 or width % 2:
        raise ValueError(
            f"{path}: H.264 needs frames with even sides, found {count} of "
            f"{width} x {height} px"
        )
    try:
        ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise RuntimeError(f"{path}: no ffmpeg; reinstall imageio-ffmpeg") from error
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    source += ["-r", str(fps), "-i", "-"]
    codec = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "18"]
    codec += ["-movflags", "+faststart", "-f", "mp4"]
    with atomic.replaced(path.absolute()) as partial:
        command = [ffmpeg, "-y", "-loglevel", "error", *source, *codec, str(partial)]
        try:
            subprocess.run(
                command, input=frames.tobytes(), capture_output=True, check=True
            )
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"{path}: ffmpeg failed: {reason[-1] if reason else error.returncode}"
            ) from error
        except OSError as error:
            raise RuntimeError(f"{path}: cannot run ffmpeg: {error}") from error


def to_uint8(values: Float[jax.Array | np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """[0, 1] to 0 .. 255, clipped."""
    return np.rint(np.clip(np.asarray(values), 0, 1) * 255).astype(np.uint8)
