"""The frozen networks that a config's loss and figures look through."""

from pathlib import Path
from typing import Any

from facelift_jax.losses.perceptual import check_vgg19, load_vgg19
from facelift_jax.losses.terms import is_used
from facelift_jax.metrics.lpips import check_lpips, load_lpips


def asks_for_lpips(config: Any) -> bool:
    """Whether LPIPS has a weight in the loss or its files are given for figures."""
    return is_used(config.loss.lpips) or bool(config.run.lpips)


def check_networks(config: Any) -> None:
    """Refuses files that `load_networks` could not use; reads their headers only.

    Raises:
      ValueError: the first one found; one line.
    """
    if is_used(config.loss.perceptual):
        check_vgg19(Path(config.run.vgg19))
    if asks_for_lpips(config):
        check_lpips(config.run.lpips)


def load_networks(config: Any) -> dict[str, Any]:
    """Parameters by the name that terms know them by; {} for most configs."""
    networks = {}
    if is_used(config.loss.perceptual):
        networks["vgg19"] = load_vgg19(Path(config.run.vgg19))
    if asks_for_lpips(config):
        networks["lpips"] = load_lpips(config.run.lpips)
    return networks
