"""Lists the commands: python -m facelift_jax."""

import sys

from facelift_jax.io import command

COMMANDS = {
    "main": "train a network from a config file, or evaluate its last checkpoint",
    "evaluate": "evaluate a network on held-out views: metrics, images and a report",
    "reconstruct": "reconstruct 3D Gaussians from the images and cameras of a scene",
    "render": "render images or a video from a PLY file of Gaussians",
    "view": "show a PLY file of Gaussians in the browser",
    "prepare": "make scenes from a recording: calibration, masks, images or videos",
    "check_data": "check whether a data set is fit to train on",
    "data.rodent": "make the synthetic six-view rodent data set",
    "data.pack": "pack the scenes of a data set into ArrayRecord files",
    "convert": "convert published PyTorch weights to a checkpoint",
    "convert.merge_lora": "merge the LoRA adapters of a checkpoint into its weights",
}


def main(arguments: list[str]) -> None:
    """Prints one line per command."""
    command.Parser(
        prog="python -m facelift_jax", description="Lists the commands, one per line."
    ).parse_args(arguments)
    for name, description in COMMANDS.items():
        print(f"python -m facelift_jax.{name:<20}{description}")
    print("Each command has --help.")


if __name__ == "__main__":
    main(sys.argv[1:])
