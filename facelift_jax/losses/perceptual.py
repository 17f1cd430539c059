"""GS-LRM's perceptual loss: differences of VGG-19's features (Zhang et al., ECCV 2024).

The network is frozen ImageNet VGG-19 (Simonyan and Zisserman, 2015) with average
pooling, as in Chen and Koltun (2017). Its weights are a file of the user's.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax import lax
from jaxtyping import Float
from safetensors.numpy import load_file

from facelift_jax.geometry.numerics import Array

WIDTHS = (64, 64, 128, 128, *[256] * 4, *[512] * 8)  # of the 16 convolutions
POOLED = (2, 4, 8, 12)  # convolutions followed by 2 x 2 average pooling
TAPPED = (2, 4, 6, 10, 14)  # convolutions whose rectified outputs are compared
MEAN_RGB = (123.68, 116.779, 103.939)  # of ImageNet, in 0..255
# of the pictures themselves, then of each tap
TERM_WEIGHTS = (1.0, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
SMALLEST = 16  # side in pixels that the four poolings leave something of


def vgg19_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes [out in 3 3], [out] of the file's 32 tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False), 1):
        shapes[f"conv{i}.weight"] = (width, before, 3, 3)
        shapes[f"conv{i}.bias"] = (width,)
    return shapes


def check_vgg19(path: Path) -> None:
    """Refuses a weight file that the loss could not use; reads its header only.

    Raises:
      ValueError: no file, another kind of file, or other tensors; one line.
    """
    hint = "name as run.vgg19 the file that converting GS-LRM's weights writes"
    if not path.is_file():
        raise ValueError(f"{path}: no file of VGG-19's weights; {hint}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys()
            found = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); {hint}") from error
    expected = vgg19_shapes()
    wrong = [name for name in expected if found.get(name) != expected[name]]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of VGG-19's {len(expected)} tensors are missing or "
            f"of another shape, first {wrong[0]}; {hint}"
        )


def load_vgg19(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a weight file by name, float32.

    Raises:
      ValueError: as `check_vgg19`.
    """
    check_vgg19(path)
    tensors = load_file(path)
    return {name: tensors[name].astype(np.float32) for name in vgg19_shapes()}


def vgg19_features(
    weights: Mapping[str, Array], images: Float[Array, "n h w 3"]
) -> Sequence[Float[Array, "n y x c"]]:
    """The pictures less the mean colour, in 0..255, then the output of every tap.

    Raises:
      ValueError: pictures too small for the network.
    """
    if min(images.shape[1:3]) < SMALLEST:
        raise ValueError(
            f"loss.perceptual: pictures of {images.shape[2]} x {images.shape[1]} px "
            f"are smaller than VGG-19's {SMALLEST} px"
        )
    images = jnp.asarray(images)
    x = 255 * images - jnp.asarray(MEAN_RGB, images.dtype)[None, None, None]
    features = [x]
    for i in range(1, max(TAPPED) + 1):
        x = lax.conv_general_dilated(
            x,
            jnp.asarray(weights[f"conv{i}.weight"]),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
        )
        x = jax.nn.relu(x + jnp.asarray(weights[f"conv{i}.bias"])[None, None, None])
        if i in TAPPED:
            features.append(x)
        if i in POOLED:
            window = (1, 2, 2, 1)
            x = lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / 4
    return features


def perceptual_distance(
    weights: Mapping[str, Array],
    images: Float[Array, "b t h w 3"],
    targets: Float[Array, "b t h w 3"],
) -> Float[Array, "b"]:
    """Weighted mean absolute differences of features, in units of a grey level / 255.

    `weights` as `load_vgg19` gives them. Colours are not clipped; the targets get no
    gradient.
    """
    num_scenes = images.shape[0]
    pictures = (images, jax.lax.stop_gradient(jnp.asarray(targets)))
    features = [vgg19_features(weights, x.reshape(-1, *x.shape[2:])) for x in pictures]
    total = jnp.zeros(num_scenes, images.dtype)
    for weight, ours, theirs in zip(TERM_WEIGHTS, *features, strict=True):
        difference = jnp.abs(ours - theirs).reshape(num_scenes, -1)
        total = total + weight * difference.mean(axis=-1)
    return total / 255
