"""What a full disk or a kill leaves of a checkpoint directory."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facelift_jax.checkpoints import checkpoint

REPOSITORY = Path(__file__).parents[2]


def save(directory, step, state, keep=5):
    checkpoint.save_checkpoint(directory, step, state, metadata={}, keep=keep)


def restore(directory, like):
    return checkpoint.restore_checkpoint(directory, like)[0]


def as_bytes(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


@contextlib.contextmanager
def largest_file(num_bytes):
    """Writing a larger file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_older_step(tmp_path):
    big = {"params": jax.random.normal(jax.random.key(0), (200_000,))}
    save(tmp_path, 1, big)
    later = jax.tree.map(lambda x: x + 1, big)
    with (
        largest_file(100_000),
        pytest.raises(OSError, match=r"/2: cannot be saved: ") as error,
    ):
        save(tmp_path, 2, later, keep=1)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["1"]
    assert as_bytes(restore(tmp_path, big)) == as_bytes(big)
    save(tmp_path, 2, later, keep=1)
    assert as_bytes(restore(tmp_path, big)) == as_bytes(later)


def test_too_little_space_is_reported_before_writing(tmp_path, monkeypatch):
    state = {"params": jnp.ones(2**18)}
    save(tmp_path, 1, state)
    usage = shutil.disk_usage(tmp_path)._replace(free=2**19)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        OSError, match=r"takes 1\.0 MiB, but the disk has 0\.5 MiB left"
    ):
        save(tmp_path, 2, state)
    assert os.listdir(tmp_path) == ["1"]


CHILD = """
import sys, time
import jax, jax.numpy as jnp
from facelift_jax.checkpoints import checkpoint

class Position:
    def get_state(self):
        if mode == "stuck" and step == 2:
            print("saving", flush=True)
            time.sleep(100)
        return b"{}"

directory, mode = sys.argv[1:]
for step in range(1, 1000):
    values = jnp.arange(500_000.0) + step
    checkpoint.save_checkpoint(
        directory, step, {"params": values, "step": step}, metadata={}, keep=2,
        data_iterator=Position(),
    )
    if mode == "busy" and step == 3:
        print("saving", flush=True)
"""


@pytest.mark.parametrize(("mode", "seconds"), [("stuck", 0.0), ("busy", 0.1)])
def test_a_kill_while_saving_leaves_a_step_to_resume_from(tmp_path, mode, seconds):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), mode],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"saving\n"
        time.sleep(seconds)
        child.send_signal(signal.SIGKILL)
    step = checkpoint.latest_step(tmp_path)
    assert step is not None
    assert step == 1 if mode == "stuck" else step >= 3
    like = {"params": jnp.zeros(500_000), "step": 0}
    values = jnp.arange(500_000.0) + step
    expected = {"params": values, "step": step}
    assert as_bytes(restore(tmp_path, like)) == as_bytes(expected)
    save(tmp_path, step + 1, like, keep=1)
    assert os.listdir(tmp_path) == [str(step + 1)]
