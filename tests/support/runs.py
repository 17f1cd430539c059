"""Runs of the commands: in processes of their own, or in this process."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from facelift_jax import main
from facelift_jax.checkpoints.checkpoint import load_params
from facelift_jax.checkpoints.tree import flatten_names

ROOT = Path(__file__).parents[2]


def command(*arguments, cwd, module="main", code=None, largest_file=None):
    """Starts a command in a process of its own, with one device, as a user would.

    `code` replaces the command. `largest_file` limits the size of the files it can
    write, in bytes, as on a disk that is nearly full.
    """
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(ROOT)
    limit = []
    if largest_file is not None:
        blocks = largest_file // 1024
        limit = ["bash", "-c", f'ulimit -f {blocks}; exec "$@"', "limited"]
    what = ["-m", f"facelift_jax.{module}"] if code is None else ["-c", code]
    return subprocess.Popen(
        [*limit, sys.executable, *what, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """(exit code, stdout, stderr) of a process; fails if it shows a traceback."""
    out, err = process.communicate(timeout=900)
    assert "Traceback" not in err, err
    return process.returncode, out, err.strip()


def refused(arguments, monkeypatch, capsys):
    """The last line on stderr of `main` in this process; it must exit with code 2.

    For input that is refused before anything depends on the number of devices.
    """
    values = flags.FlagValues()
    monkeypatch.setattr(main, "FLAGS", values)
    monkeypatch.setattr(sys, "argv", ["main", *arguments])

    def run_main():
        main.main(main.parse_flags(sys.argv))

    with warnings.catch_warnings():
        # how ml_collections loads a config file
        warnings.filterwarnings("ignore", r"the load_module\(\) method is deprecated")
        main.define_flags(values)
        with pytest.raises(SystemExit) as exit_info:
            run_main()
    assert exit_info.value.code == 2
    return last_line(capsys.readouterr().err)


def last_line(err):
    return err.splitlines()[-1]


def smoke(workdir, data, *flags, recipe="lgm", argument="smoke", **how):
    """Starts a run of a smoke recipe on the data set `data`."""
    return command(
        f"--config={ROOT}/configs/{recipe}.py:{argument}",
        f"--workdir={workdir}",
        f"--config.data.path={data}",
        *flags,
        **how,
    )


def kill_after_first_checkpoint(process, run):
    """Kills a run of the smoke recipe when step 5, its first checkpoint, is saved."""
    saved = run / "checkpoints" / "5" / "_CHECKPOINT_METADATA"
    while not saved.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # also closes its pipes


def assert_same_params(run, expected):
    """Compares the last checkpoints of two runs bit by bit."""
    ours, theirs = (flatten_names(load_params(x)[0]) for x in (run, expected))
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)


def lines_of(run):
    """The lines of metrics.jsonl."""
    text = (run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]
