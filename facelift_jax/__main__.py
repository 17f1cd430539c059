"""Lists the commands: python -m facelift_jax."""

import sys

from facelift_jax.io import command

COMMANDS = {
    "main": "train a network from a config file, or evaluate its last checkpoint",
    "evaluate": "metrics, images and a report on held-out views of a data set",
    "reconstruct": "images and cameras of a scene to 3D Gaussians",
    "render": "images or a video of a PLY file of Gaussians",
    "view": "show a PLY file of Gaussians in the browser",
    "prepare": "calibration, masks, and images or videos of a recording to scenes",
    "check_data": "check whether a data set is fit to train on",
    "data.rodent": "make the synthetic six-view rodent data set",
    "data.pack": "pack the scenes of a data set into ArrayRecord files",
    "convert": "published PyTorch weights to a checkpoint",
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
