"""Progress lines, durations, and threads that keep the order."""

import itertools
import threading

import pytest

from facelift_jax.io import progress
from facelift_jax.io.progress import (
    duration,
    map_in_order,
    progress_line,
    show_progress,
    with_progress,
)


def test_progress_line():
    line = progress_line(120, 600, done_before=20, seconds=50, text="loss 0.1")
    assert line == "step 120/600  20%  2 steps/s  4:00 left  loss 0.1"
    slow = progress_line(30, 30_000, done_before=0, seconds=60)
    assert slow == "step 30/30,000  0%  2 s/step  16:39:00 left"
    assert progress_line(0, 10, 0, 0.0) == "step 0/10  0%"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_progress_goes_to_stderr(capsys):
    show_progress("step 1/2")
    assert capsys.readouterr().err == "step 1/2\n"


def test_scenes_are_counted_and_timed(monkeypatch):
    """A clock that advances by 2 s per scene, and a line at most every 5 s."""
    times = itertools.count(0.0, 2.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    lines = []
    scenes = with_progress("abcd", "pack", 10, lines.append, done_before=6)
    assert list(scenes) == list("abcd")
    assert lines == [
        "pack: 9/10 scenes, 0.5 scenes/s, 0:02 left",
        "pack: 4 scenes in 0:10, 0.4 scenes/s",
    ]


def test_nothing_done_shows_nothing():
    lines = []
    assert list(with_progress([], "pack", 0, lines.append)) == []
    assert lines == []


def test_results_keep_their_order_whichever_is_first():
    second_is_done = threading.Event()

    def work(index, factor):
        if index == 0:
            assert second_is_done.wait(timeout=60)
        if index == 1:
            second_is_done.set()
        return factor * index

    arguments = [(index, 10) for index in range(5)]
    assert list(map_in_order(work, arguments, workers=2)) == [0, 10, 20, 30, 40]


def test_few_arguments_are_drawn_ahead():
    drawn = []

    def arguments():
        for index in range(100):
            drawn.append(index)
            yield (index,)

    results = map_in_order(lambda index: index, arguments(), workers=3)
    assert next(results) == 0
    assert drawn == [0, 1, 2, 3]


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda x: 1 / x, [(1,), (0,)], workers=2))
