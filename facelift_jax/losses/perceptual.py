"""GS-LRM's perceptual loss: differences of VGG-19 features (Zhang et al., ECCV 2024).

The network is a frozen ImageNet VGG-19 (Simonyan and Zisserman, 2015) with average
pooling, as in Chen and Koltun (2017). The user provides the file of its weights.
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
TAPPED = (2, 4, 6, 10, 14)  # convolutions whose outputs are compared, after ReLU
MEAN_RGB = (123.68, 116.779, 103.939)  # of ImageNet, in 0..255
# of the images themselves, then of the output of each tapped convolution
TERM_WEIGHTS = (1.0, 1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
MIN_SIZE = 16  # side in pixels; the four poolings halve it to one pixel


def vgg19_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the 32 tensors of the file: kernels [out in 3 3], biases."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False), 1):
        shapes[f"conv{i}.weight"] = (width, before, 3, 3)
        shapes[f"conv{i}.bias"] = (width,)
    return shapes


def check_vgg19(path: Path) -> None:
    """Refuses a weight file that the loss cannot use; reads only its header.

    Raises:
      ValueError: no file, another kind of file, or other tensors; one line.
    """
    hint = "set loss.vgg19_weights to the file that converting GS-LRM's weights writes"
    if not path.is_file():
        raise ValueError(f"{path}: no file of VGG-19 weights; {hint}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error}); {hint}") from error
    expected = vgg19_shapes()
    wrong = [name for name in expected if shapes.get(name) != expected[name]]
    if wrong:
        raise ValueError(
            f"{path}: {len(wrong)} of VGG-19's {len(expected)} tensors are missing or "
            f"have another shape, first {wrong[0]}; {hint}"
        )


def load_vgg19(path: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a weight file by name.

    Raises:
      ValueError: see `check_vgg19`.
    """
    check_vgg19(path)
    tensors = load_file(path)
    return {name: tensors[name].astype(np.float32) for name in vgg19_shapes()}


def vgg19_features(
    weights: Mapping[str, Array], images: Float[Array, "n h w 3"]
) -> Sequence[Float[Array, "n y x c"]]:
    """The images minus the mean color, in 0..255, then the output of every tap.

    Raises:
      ValueError: images too small for the network.
    """
    if min(images.shape[1:3]) < MIN_SIZE:
        raise ValueError(
            f"loss.perceptual: images of {images.shape[2]} x {images.shape[1]} px are "
            f"too small for VGG-19; data.target_size must be at least {MIN_SIZE} px"
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
    """Weighted sum of mean absolute feature differences, divided by 255.

    `weights` are those of `load_vgg19`. Colors are not clipped; the targets get no
    gradient.
    """
    num_scenes = images.shape[0]
    pair = (images, jax.lax.stop_gradient(jnp.asarray(targets)))
    features = [vgg19_features(weights, x.reshape(-1, *x.shape[2:])) for x in pair]
    total = jnp.zeros(num_scenes, images.dtype)
    for weight, rendered, target in zip(TERM_WEIGHTS, *features, strict=True):
        difference = jnp.abs(rendered - target).reshape(num_scenes, -1)
        total = total + weight * difference.mean(axis=-1)
    return total / 255
