"""Progress of long work, and work in threads whose results stay in order."""

import collections
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

SECONDS_BETWEEN_REPORTS = 5.0
_Item = TypeVar("_Item")


def with_progress(
    scenes: Iterable[_Item],
    name: str,
    total: int,
    show: Callable[[str], None],
    done_before: int = 0,
) -> Iterator[_Item]:
    """Yields the scenes, and shows a progress line every few seconds and at the end.

    A scene counts as done when the next one is requested. `done_before` of the `total`
    scenes were done before this call; `name` starts each line.
    """
    start = last = time.monotonic()
    done = 0
    for done, scene in enumerate(scenes, start=1):
        yield scene
        now = time.monotonic()
        rate = done / max(now - start, 1e-9)
        if now - last >= SECONDS_BETWEEN_REPORTS:
            last = now
            left = duration((total - done_before - done) / rate)
            show(
                f"{name}: {done_before + done}/{total} scenes, {rate:.3g} scenes/s, "
                f"{left} left"
            )
    if done:
        seconds = max(time.monotonic() - start, 1e-9)
        rate = f"{done / seconds:.3g} scenes/s"
        show(f"{name}: {done} scenes in {duration(seconds)}, {rate}")


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def map_in_order(
    function: Callable[..., _Item], arguments: Iterable[tuple], workers: int
) -> Iterator[_Item]:
    """`itertools.starmap` in threads: results in the order of the arguments.

    At most `workers` results are computed ahead of the one that is requested.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[Future] = collections.deque()
        for item in arguments:
            waiting.append(pool.submit(function, *item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def progress_line(
    done: int, total: int, done_before: int, seconds: float, text: str = ""
) -> str:
    """`step 120/600  20%  3.1 steps/s  2:35 left  text`.

    `done_before` of the `done` steps were done before this process started, `seconds`
    ago.
    """
    rate = (done - done_before) / seconds if seconds > 0 else 0.0
    parts = [f"step {done:,}/{total:,}", f"{100 * done // total}%"]
    if rate > 0:
        pace = f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"
        parts += [pace, f"{duration((total - done) / rate)} left"]
    return "  ".join([*parts, text] if text else parts)


def show_progress(line: str) -> None:
    """Writes a progress line to stderr; on a terminal it replaces the previous one."""
    if sys.stderr.isatty():
        # as wide as the terminal, so that the next output starts on a new row
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write(f"\r{line[:width]:<{width}}")
    else:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def show_on_first_process(line: str) -> None:
    """`show_progress` on the first process of a distributed run; silent on others."""
    import jax

    if jax.process_index() == 0:
        show_progress(line)
