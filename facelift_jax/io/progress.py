"""Long work: its pieces in threads, and how far it is."""

import collections
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

SECONDS_BETWEEN_REPORTS = 5.0
_Item = TypeVar("_Item")


def watched(
    items: Iterable[_Item],
    name: str,
    total: int,
    say: Callable[[str], None],
    there: int = 0,
) -> Iterator[_Item]:
    """Passes scenes on and says now and then, and at the end, how far the work is.

    A scene counts when the next one is asked for. `there` of the `total` scenes were
    finished before.
    """
    start = last = time.monotonic()
    made = 0
    for made, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        rate = made / max(now - start, 1e-9)
        if now - last >= SECONDS_BETWEEN_REPORTS:
            last = now
            left = duration((total - there - made) / rate)
            say(
                f"{name}: {there + made}/{total} scenes, {rate:.3g} scenes/s, "
                f"{left} left"
            )
    if made:
        seconds = max(time.monotonic() - start, 1e-9)
        rate = f"{made / seconds:.3g} scenes/s"
        say(f"{name}: {made} scenes in {duration(seconds)}, {rate}")


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def in_order(
    function: Callable[..., _Item], arguments: Iterable[tuple], workers: int
) -> Iterator[_Item]:
    """Results in the order of the arguments, of which few are drawn ahead."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: collections.deque[Future] = collections.deque()
        for some in arguments:
            waiting.append(pool.submit(function, *some))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def progress_line(
    done: int, total: int, done_before: int, seconds: float, text: str = ""
) -> str:
    """`step 120/600  20%  3.1 steps/s  2:35 left  text`.

    `done_before` steps were done when the clock, now at `seconds`, was started.
    """
    rate = (done - done_before) / seconds if seconds > 0 else 0.0
    parts = [f"step {done:,}/{total:,}", f"{100 * done // total}%"]
    if rate > 0:
        pace = f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s/step"
        parts += [pace, f"{duration((total - done) / rate)} left"]
    return "  ".join([*parts, text] if text else parts)


def show_progress(line: str) -> None:
    """Write a progress line to stderr, over the last one where it is a terminal."""
    if sys.stderr.isatty():
        # a full row: what is printed next begins on another
        width = os.get_terminal_size(sys.stderr.fileno()).columns
        sys.stderr.write(f"\r{line[:width]:<{width}}")
    else:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def show_on_first_process(line: str) -> None:
    """`show_progress` in the first of several processes; the others are silent."""
    import jax

    if jax.process_index() == 0:
        show_progress(line)
