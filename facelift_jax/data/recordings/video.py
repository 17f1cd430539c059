"""Videos read with PyAV: size, timestamps, and frames by number.

Every error is a `DataError` of one line that names FFmpeg's reason. A video cannot
refer to other files: playlists and lists of files are refused.
"""

import contextlib
from collections.abc import Generator, Iterator
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video import VideoFrame, VideoStream
from jaxtyping import Float, UInt8

from facelift_jax.data.io import MAX_PIXELS, DataError

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv")
_OPEN_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm",
    "protocol_whitelist": "file",
}
_ADVICE = "copy the original file again"
_DECODE_OPTIONS = {"err_detect": "explode"}  # fail where FFmpeg would conceal damage


def probe_video(path: Path) -> tuple[tuple[int, int], Float[np.ndarray, "n"]]:
    """(width, height) in pixels, and the time of every frame in seconds from the first.

    Times are presentation timestamps. No frame is decoded.

    Raises:
      DataError: the video is not readable or incomplete.
    """
    with _open_video(path) as (container, stream):
        width, height = stream.codec_context.width, stream.codec_context.height
        stamps = []
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                if packet.is_corrupt:
                    raise DataError(
                        f"frame {len(stamps)} is damaged or cut off; {_ADVICE}"
                    )
                stamps.append(packet.dts if packet.pts is None else packet.pts)
        if not stamps or not 0 < width * height <= MAX_PIXELS:
            raise DataError(
                f"{len(stamps)} frames of {width} x {height} px; expected at least one "
                f"frame, of at most {MAX_PIXELS // 10**6} megapixels"
            )
        if None in stamps or stream.time_base is None:
            raise DataError("frames without timestamps; encode the video again")
        times = np.sort(np.array(stamps, np.float64)) * float(stream.time_base)
    return (width, height), times - times[0]


def read_video(
    path: Path, frames: range, size: tuple[int, int], count: int, is_gray: bool
) -> Generator[UInt8[np.ndarray, "h w *c"], None, None]:
    """Decodes frames by number in presentation order: [h w 3] RGB, or [h w] gray.

    Decoding starts at the first frame, so that numbers are exact for every codec.
    `size` and `count` are those of `probe_video`.

    Raises:
      DataError: a frame is damaged, missing, rotated or of another size.
    """
    number = -1
    with _open_video(path) as (container, stream):
        stream.codec_context.options = _DECODE_OPTIONS
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DataError(f"frame {number} is damaged; {_ADVICE}")
            if number in frames:
                _check_frame(frame, number, size)
                yield frame.to_ndarray(
                    format="gray" if is_gray else "rgb24", interpolation="BICUBIC"
                )
            if number == frames[-1]:
                return
        raise DataError(
            f"ends after {number + 1} of the {count} frames in its index; {_ADVICE}"
        )


def _check_frame(frame: VideoFrame, number: int, size: tuple[int, int]) -> None:
    if (frame.width, frame.height) != size or frame.rotation:
        raise DataError(
            f"frame {number} is {frame.width} x {frame.height} px with a rotation of "
            f"{frame.rotation} degrees, expected {size[0]} x {size[1]} px and no "
            "rotation; encode the video again"
        )


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its first video stream; errors of FFmpeg become a `DataError`."""
    try:
        with av.open(f"file:{path.absolute()}", options=_OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise DataError("holds no video stream")
            yield container, container.streams.video[0]
    except FFmpegError as error:
        raise DataError(
            f"not a readable video, or damaged (ffmpeg: {error.strerror})"
        ) from error
