"""Checks a folder of your own scenes, then trains LGM on it.

    python examples/train_on_your_scenes.py data/mouse runs/mouse

A scene is a folder with RGBA images and opencv_cameras.json (docs/data.md). `prepare`
makes such scenes from a calibrated recording. docs/recording.md shows how to train on
them from the command line.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

from configs.lgm import get_config
from facelift_jax.builders import data_options
from facelift_jax.data.mixture import open_checked
from facelift_jax.evaluation.results import table
from facelift_jax.io import command
from facelift_jax.training.train import check_settings, train


def main(arguments: list[str]) -> None:
    """The example."""
    parser = argparse.ArgumentParser(description="Train LGM on your own scenes.")
    parser.add_argument("data", type=Path, help="folder of scenes")
    parser.add_argument(
        "workdir", type=Path, help="run directory; resumed if it is there"
    )
    parser.add_argument("--recipe", default="tiny", help="as in configs/lgm.py:RECIPE")
    parser.add_argument("--held-out", type=int, default=8, help="the last N scenes")
    parser.add_argument("--inputs", type=int, default=4, help="views given")
    parser.add_argument("--targets", type=int, default=6, help="views in the loss")
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    flags = parser.parse_args(arguments)
    command.log_own_lines()

    config: Any = get_config(flags.recipe)
    config.data.update(path=str(flags.data), num_held_out_scenes=flags.held_out)
    config.data.update(num_inputs=flags.inputs, num_targets=flags.targets)
    config.data.min_held_out = 1
    if flags.steps:
        config.run.num_steps = flags.steps
    check_settings(config)
    options = data_options(config.data, config.eval.num_targets)
    # opens and checks the scenes: cameras, masks, leakage; raises with the likely cause
    open_data = functools.partial(open_checked, config.data, options, flags.workdir)
    print(table(train(config, flags.workdir, open_data)))


if __name__ == "__main__":
    command.run("train_on_your_scenes", main)
