"""Command: converts published PyTorch weights to an orbax checkpoint.

    python -m facelift_jax.convert --model lgm --variant big --src FILE --dst DIR

DIR gets the checkpoint (only parameters, as step 0) and `conversion.json`: name and
SHA-256 of the source, model, variant, overrides, the data settings of the published
weights, and their license. If the file holds the VGG-19 of GS-LRM's perceptual loss,
DIR also gets `vgg19.safetensors`, for `--config.loss.vgg19_weights`.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from facelift_jax.checkpoints.checkpoint import save_params
from facelift_jax.convert import convert_state, rule_table
from facelift_jax.convert.files import open_tensors
from facelift_jax.io import atomic, command
from facelift_jax.models import DEFAULT_VARIANTS, get_model

NOTE = "conversion.json"
PERCEPTUAL = "vgg19.safetensors"


def _parse(arguments: list[str]) -> Any:
    parser = command.Parser(
        prog="python -m facelift_jax.convert",
        description="Convert published PyTorch weights to an orbax checkpoint.",
    )
    parser.add_argument("--model", required=True, choices=sorted(DEFAULT_VARIANTS))
    parser.add_argument("--variant", help="default: the one with published weights")
    parser.add_argument(
        "--overrides",
        default="{}",
        help='sizes that differ from the variant, in JSON: {"up_channels": [512, 256]}',
    )
    parser.add_argument(
        "--src",
        required=True,
        type=Path,
        help=".safetensors, or .pt / .pth (needs torch)",
    )
    parser.add_argument(
        "--dst", required=True, type=Path, help="new or empty folder for the checkpoint"
    )
    return parser.parse_args(arguments)


def _parse_overrides(text: str) -> dict[str, Any]:
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--overrides: not JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ValueError(f"--overrides: expected a JSON object, found {text}")
    return overrides


def _read(src: Path, name: str, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`convert_state` for a file; its tensors are read one at a time."""
    with open_tensors(src) as (names, read):
        return convert_state(name, model, names, read)


def convert(
    model: str, variant: str | None, overrides: dict[str, Any], src: Path, dst: Path
) -> dict[str, Any]:
    """Converts the file `src` to the checkpoint folder `dst`.

    Returns:
      The contents of `conversion.json`.

    Raises:
      ValueError, OSError, ModuleNotFoundError: one line that says what to change.
    """
    if dst.exists() and not (dst.is_dir() and not any(dst.iterdir())):
        raise ValueError(f"{dst}: exists and is not an empty folder; choose another")
    params, perceptual = _read(src, model, get_model(model, variant, **overrides))
    with src.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    note = {
        "model": {
            "name": model,
            "variant": variant or DEFAULT_VARIANTS[model],
            "dtype": "float32",
            "overrides": overrides,
        },
        "data": dict(rule_table(model).DATA),
        "source": src.name,
        "sha256": digest,
        "licence": rule_table(model).LICENSE,
    }
    save_params(dst, params, note)
    if perceptual:
        save_file(perceptual, dst / PERCEPTUAL)
    atomic.write_text(dst / NOTE, json.dumps(note, indent=2) + "\n")
    return note


def main(arguments: list[str]) -> None:
    """Runs the command; raises the errors of `convert`."""
    args = _parse(arguments)
    overrides = _parse_overrides(args.overrides)
    note = convert(args.model, args.variant, overrides, args.src, args.dst)
    print(f"{args.dst}: {args.model} {note['model']['variant']} from {note['source']}")
    if (args.dst / PERCEPTUAL).exists():
        print(f"{args.dst / PERCEPTUAL}: VGG-19 of the perceptual loss")
    print(note["licence"])


if __name__ == "__main__":
    command.run("convert", main)
