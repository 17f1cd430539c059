"""What every command does alike: one-line errors, exit code 2, its own log lines."""

import argparse
import math
import sys
from pathlib import Path
from typing import NoReturn

from absl import logging

BAD_INPUT = 2


def fail(name: str, error: object) -> NoReturn:
    """One line on stderr, `name: error`; exit code 2."""
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(BAD_INPUT)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint about usage is one line too."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        fail(self.prog.split(".")[-1], f"{message}; see --help")

    def add_background(self) -> None:
        """Adds the flag of the background that the data contract asks for."""
        self.add_argument(
            "--background",
            type=_channel,
            nargs=3,
            default=(1.0, 1.0, 1.0),
            metavar=("R", "G", "B"),
            help="of the renderer, in [0, 1]; default white",
        )


def _channel(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number in [0, 1]; white is 1 1 1"
        )
    return value


def log_own_lines() -> None:
    """Shows the package's information, and of other libraries warnings only."""
    package = str(Path(__file__).parents[1])
    logging.use_absl_handler()  # else Python's own, which filters nothing, comes first
    handler = logging.get_absl_handler()
    handler.setFormatter(None)
    handler.addFilter(
        lambda line: line.pathname.startswith(package) or line.levelname != "INFO"
    )
    logging.set_verbosity(logging.INFO)
