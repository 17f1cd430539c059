"""Rules that map LGM's published tensors (3DTopia/LGM) to this package's parameters.

Modules have the published names here, so only the leaves are renamed.
"""

from collections.abc import Callable

from facelift_jax.convert.rules import Rule, conv_kernel, dense_kernel, unchanged

LICENSE = "LGM's code and published weights: MIT license, github.com/3DTopia/LGM"

# how scenes and images are prepared for the published weights
DATA = {"num_inputs": 4, "input_size": 256, "target_size": 512}
DATA |= {"radius": 1.5, "frame": "first_camera"}

PERCEPTUAL_RULES = ()  # every tensor belongs to the network


def _rules(module: str, leaf: str, layout: Callable = unchanged) -> tuple[Rule, ...]:
    """The rules of a module's `weight`, which becomes `leaf`, and of its `bias`."""
    ours = module.replace(".{", "_{").replace(".", "/")
    weight = Rule(f"{module}.weight", f"{ours}/{leaf}", layout)
    return weight, Rule(f"{module}.bias", f"{ours}/bias")


def _conv(module: str) -> tuple[Rule, ...]:
    return _rules(module, "kernel", conv_kernel)


def _dense(module: str) -> tuple[Rule, ...]:
    return _rules(module, "kernel", dense_kernel)


def _norm(module: str) -> tuple[Rule, ...]:
    return _rules(module, "scale")


def _block(block: str) -> tuple[Rule, ...]:
    """The rules of residual blocks and attention, which every kind of block has."""
    nets, attns = f"{block}.nets.{{j}}", f"{block}.attns.{{j}}"
    return (
        *_norm(f"{nets}.norm1"),
        *_conv(f"{nets}.conv1"),
        *_norm(f"{nets}.norm2"),
        *_conv(f"{nets}.conv2"),
        *_conv(f"{nets}.shortcut"),
        *_norm(f"{attns}.norm"),
        *_dense(f"{attns}.attn.qkv"),
        *_dense(f"{attns}.attn.proj"),
    )


RULES = (
    *_conv("unet.conv_in"),
    *_block("unet.down_blocks.{i}"),
    *_conv("unet.down_blocks.{i}.downsample"),
    *_block("unet.mid_block"),
    *_block("unet.up_blocks.{i}"),
    *_conv("unet.up_blocks.{i}.upsample"),
    *_norm("unet.norm_out"),
    *_conv("unet.conv_out"),
    *_conv("conv"),
)
