"""Scalars for TensorBoard, for processes that have the package `tensorboard`."""

import importlib
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging


def open_events(directory: str | Path, step: int) -> Path | None:
    """Starts a new event file; returns its path, or None without the package.

    A resumed run gets another file in the same directory. TensorBoard joins them, and
    discards what earlier files hold of steps after `step`.
    """
    try:
        event_pb2 = _messages("event")
    except ModuleNotFoundError as error:
        logging.info("no TensorBoard files: the package %s is missing", error.name)
        return None
    now = time.time()
    name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
    path = Path(directory) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    _append(path, event_pb2.Event(wall_time=now, file_version="brain.Event:2"))
    _append(path, event_pb2.Event(wall_time=now, step=step + 1, session_log=started))
    return path


def append_scalars(path: Path | None, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends the finite metrics of one step to an event file; nothing for None."""
    if path is None:
        return
    event_pb2, summary_pb2 = _messages("event"), _messages("summary")
    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=float(value))
        for name, value in metrics.items()
        if math.isfinite(value)
    ]
    summary = summary_pb2.Summary(value=values)
    _append(path, event_pb2.Event(wall_time=time.time(), step=step, summary=summary))


def _messages(name: str) -> Any:
    """A module of TensorBoard's protocol buffers: generated code without types."""
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


def _append(path: Path, event: Any) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("ab") as file:
        RecordWriter(file).write(event.SerializeToString())
