"""Without the packages of the extras, every command has help or names the extra."""

import json
import subprocess
import sys

import pytest
from optional_packages import HIDE
from runs import ROOT

from facelift_jax.__main__ import COMMANDS

NEEDED = {"main": "train", "data.pack": "train"}  # even for the help
HELP = """
import contextlib, io, json, runpy, traceback

outputs = {}
for name in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(f"facelift_jax.{name}", run_name="__main__")
        except SystemExit as ending:
            code = ending.code
        except Exception:
            code = traceback.format_exc()
    outputs[name] = code, out.getvalue(), err.getvalue()
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module")
def outputs():
    """name -> (exit code, stdout, stderr) of every command with --help."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE + HELP, *COMMANDS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_or_names_its_extra(name, outputs):
    code, out, err = outputs[name]
    if name in NEEDED:
        assert (code, out) == (2, "")
        assert err.startswith(f"{name.split('.')[-1]}: the package ")
        assert err.endswith(f'pip install "facelift-jax[{NEEDED[name]}]"\n')
        assert err.count("\n") == 1
    else:
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: python -m facelift_jax.{name} ")
