"""The frozen networks that loss terms and metrics use: their files and parameters."""

from pathlib import Path
from typing import Any

from facelift_jax.losses.perceptual import check_vgg19, load_vgg19
from facelift_jax.losses.weights import is_used
from facelift_jax.metrics.lpips import check_lpips, load_lpips


def uses_lpips(section: Any) -> bool:
    """Whether a config's `loss` section weights LPIPS or names its files.

    Files without a weight make LPIPS a metric that is not part of the loss.
    """
    return is_used(section["lpips"]) or bool(section["lpips_weights"])


def check_networks(section: Any) -> None:
    """Refuses files that `load_networks` cannot use; reads only their headers.

    Raises:
      ValueError: the first problem, in one line.
    """
    if is_used(section["perceptual"]):
        check_vgg19(Path(section["vgg19_weights"]))
    if uses_lpips(section):
        check_lpips(section["lpips_weights"])


def load_networks(section: Any) -> dict[str, Any]:
    """Parameters of the networks that a config's `loss` section needs, by name.

    The names are those under which terms find them in `aux`: "vgg19", "lpips". Most
    configs need none.
    """
    networks = {}
    if is_used(section["perceptual"]):
        networks["vgg19"] = load_vgg19(Path(section["vgg19_weights"]))
    if uses_lpips(section):
        networks["lpips"] = load_lpips(section["lpips_weights"])
    return networks
