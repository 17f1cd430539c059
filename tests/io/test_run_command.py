"""One-line errors and exit codes of `command.run`, and missing extras."""

import logging as python_logging
import sys

import pytest
from absl import logging

from facelift_jax.io import command
from facelift_jax.io.extras import extra


def run(monkeypatch, capsys, main, arguments=()):
    """(exit code, stderr) of a command with this `main`."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as ending:
        command.run("name", main)
    code = ending.value.code
    return 0 if code is None else code, capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_the_exit_code_is_what_main_returns(monkeypatch, capsys, returned, code):
    received = []

    def main(arguments):
        received.append(arguments)
        return returned

    assert run(monkeypatch, capsys, main, ["a", "-b"]) == (code, "")
    assert received == [["a", "-b"]]


@pytest.mark.parametrize("error", command.USER_ERRORS)
def test_user_errors_are_one_line_with_exit_code_2(monkeypatch, capsys, error):
    def main(arguments):
        raise error("a folder:\n  empty")

    assert run(monkeypatch, capsys, main) == (2, "name: a folder: empty\n")


def test_an_interrupt_is_one_line_with_exit_code_130(monkeypatch, capsys):
    def main(arguments):
        raise KeyboardInterrupt

    code, err = run(monkeypatch, capsys, main)
    assert code == 130
    assert err == "name: interrupted; run the same command again\n"


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main(arguments):
        raise KeyError("x")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(KeyError):
        command.run("name", main)


def test_a_missing_extra_is_one_line(monkeypatch, capsys):
    def main(arguments):
        with extra("view"):
            import a_package_that_is_not_installed  # noqa: F401

    line = "the package a_package_that_is_not_installed is missing: install it with "
    line += 'pip install "facelift-jax[view]"'
    assert run(monkeypatch, capsys, main) == (2, f"name: {line}\n")


def test_other_errors_pass_through_an_extra():
    with (
        pytest.raises(ImportError, match="cannot import name"),
        extra("view"),
    ):
        from sys import nothing  # noqa: F401


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--size", "1"], "unrecognized arguments: --size 1; see --help"),
        (
            ["--background", "1", "1", "2"],
            "argument --background: '2' is not a number in [0, 1]; white is 1 1 1; "
            "see --help",
        ),
        (["--background", "1"], "argument --background: expected 3 arguments; see"),
    ],
)
def test_usage_errors_are_one_line(capsys, arguments, line):
    parser = command.Parser(prog="python -m facelift_jax.name")
    parser.add_background()
    with pytest.raises(SystemExit) as ending:
        parser.parse_args(arguments)
    assert ending.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"name: {line}")
    assert err.count("\n") == 1


def test_the_background_is_white_unless_given():
    parser = command.Parser()
    parser.add_background()
    assert parser.parse_args([]).background == (1.0, 1.0, 1.0)
    flags = parser.parse_args(["--background", "0", "0.5", "1"])
    assert flags.background == [0.0, 0.5, 1.0]


def test_info_lines_of_other_libraries_are_not_shown():
    command.log_own_lines()

    def is_shown(path, level):
        record = python_logging.LogRecord("x", level, path, 1, "message", (), None)
        return bool(logging.get_absl_handler().filter(record))

    own, other = command.__file__, python_logging.__file__
    assert is_shown(own, python_logging.INFO)
    assert is_shown(other, python_logging.WARNING)
    assert not is_shown(other, python_logging.INFO)
    assert logging.get_verbosity() == logging.INFO
