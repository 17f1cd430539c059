"""TensorBoard reads what a run, and a resumed run, write."""

import sys

import pytest

from facelift_jax.training import tensorboard


def scalars(directory, tag):
    """(step, value) of a tag, as TensorBoard shows it."""
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    events = accumulators.EventAccumulator(str(directory))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_resumed_run_continues_the_curve(tmp_path):
    """Lines after the restored step disappear, as they do from metrics.jsonl."""
    pytest.importorskip("tensorboard")
    path = tensorboard.open_events(tmp_path, 0)
    for step in (1, 5, 6, 8):
        tensorboard.append_scalars(path, step, {"train/total": step / 2})
    assert scalars(tmp_path, "train/total") == [(1, 0.5), (5, 2.5), (6, 3.0), (8, 4.0)]
    resumed = tensorboard.open_events(tmp_path, 5)
    assert resumed != path
    for step in (6, 10):
        tensorboard.append_scalars(resumed, step, {"train/total": float(step)})
    assert scalars(tmp_path, "train/total") == [(1, 0.5), (5, 2.5), (6, 6.0), (10, 10)]


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    name = "tensorboard.compat.proto.event_pb2"
    monkeypatch.setitem(sys.modules, name, None)  # importing it now fails
    path = tensorboard.open_events(tmp_path / "events", 0)
    assert path is None
    tensorboard.append_scalars(path, 1, {"train/total": 1.0})
    assert not list(tmp_path.iterdir())
