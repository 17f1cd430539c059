"""Command: adds the low-rank adapters of a trained network to its kernels.

    python -m facelift_jax.convert.merge_lora --checkpoint runs/x --dst weights/merged

The result is a checkpoint of a network without adapters that gives the same output up
to rounding. It can be used wherever converted weights can.
"""

from pathlib import Path

from facelift_jax.checkpoints.checkpoint import load_params, save_params
from facelift_jax.io import command
from facelift_jax.models.lora import merge_adapters


def merge_lora(checkpoint: Path, dst: Path) -> int:
    """Writes the merged parameters of the latest step to `dst`; returns the rank.

    The metadata is kept, so that an evaluation can leave out the training scenes.

    Raises:
      ValueError, OSError: there are no adapters, or `dst` is not empty; one line.
    """
    params, metadata = load_params(checkpoint)
    model = metadata.get("model", {})
    overrides = model.get("overrides", {})
    rank = overrides.get("adapter_rank", 0)
    if not rank:
        raise ValueError(f"{checkpoint}: the network has no adapters to merge")
    model = {**model, "overrides": {**overrides, "adapter_rank": 0}}
    merged = {**metadata, "model": model, "merged_adapter_rank": rank}
    save_params(dst, merge_adapters(params), merged)
    return rank


def main(arguments: list[str]) -> None:
    """Runs the command; raises the errors of `merge_lora`."""
    parser = command.Parser(
        prog="python -m facelift_jax.convert.merge_lora",
        description="Add a network's low-rank adapters to its kernels.",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="run directory")
    parser.add_argument(
        "--dst", required=True, type=Path, help="new or empty folder for the checkpoint"
    )
    flags = parser.parse_args(arguments)
    rank = merge_lora(flags.checkpoint, flags.dst)
    print(f"{flags.dst}: adapters of rank {rank} from {flags.checkpoint} merged")


if __name__ == "__main__":
    command.run("merge_lora", main)
