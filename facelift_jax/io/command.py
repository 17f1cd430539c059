"""Shared by all commands: one-line errors, exit codes, argument parser, log lines."""

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from absl import flags, logging

from facelift_jax.io.extras import extra

BAD_INPUT = 2
INTERRUPTED = 130  # the exit code that shells report after Ctrl-C
USER_ERRORS = (ValueError, OSError, RuntimeError, ImportError)


def run(name: str, main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs the `main` of a command with the process's arguments and exits.

    The exit code is what `main` returns (None is 0). An error that the user can
    correct ends with one line on stderr and exit code 2, Ctrl-C with one line and exit
    code 130. Other exceptions are bugs and keep their traceback.
    """
    try:
        sys.exit(main(sys.argv[1:]))
    except USER_ERRORS as error:
        fail(name, error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)


def fail(name: str, error: object) -> NoReturn:
    """Prints `name: error` as one line on stderr and exits with code 2."""
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


@contextlib.contextmanager
def required_extra(name: str, extra_name: str, module: str) -> Iterator[None]:
    """As `extra`, for the top of a command that does nothing without its packages.

    Where `module`, the `__name__` of the command's module, is "__main__", the error
    ends the command `name` with one line on stderr and exit code 2.
    """
    try:
        with extra(extra_name):
            yield
    except ImportError as error:
        if module != "__main__":
            raise
        fail(name, error)


class Parser(argparse.ArgumentParser):
    """An argument parser whose usage errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        fail(self.prog.split(".")[-1], f"{message}; see --help")

    def add_background(self) -> None:
        """Adds the flag for the background of the renderer, which data checks need."""
        self.add_argument(
            "--background",
            type=_channel,
            nargs=3,
            default=(1.0, 1.0, 1.0),
            metavar=("R", "G", "B"),
            help="background of the renderer, in [0, 1]; default white",
        )


def _channel(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number in [0, 1]; white is 1 1 1"
        )
    return value


def at_least(minimum: int, hint: str = "") -> Callable[[str], int]:
    """The type of a flag: an integer that is not below `minimum`.

    `hint` is appended to the error for text that is not an integer.
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer{hint and f'; {hint}'}"
            ) from error
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{value}: must be at least {minimum}")
        return value

    return parse


def log_own_lines() -> None:
    """Shows info messages of this package, and of other libraries only warnings."""
    package = str(Path(__file__).parents[1])
    flags.FLAGS.mark_as_parsed()  # else absl warns that it has no flags
    logging.use_absl_handler()  # first, since Python's own handler would filter nothing
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    handler.addFilter(
        lambda line: line.pathname.startswith(package) or line.levelname != "INFO"
    )
    logging.set_verbosity(logging.INFO)
