"""Long work: its pieces in threads, and how far it is."""

import collections
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
