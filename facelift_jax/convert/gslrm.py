"""Rules that map FaceLift's published GS-LRM tensors to this package's parameters."""

from facelift_jax.convert.rules import Rule, dense_kernel

LICENSE = (
    "FaceLift's GS-LRM model files and published weights: Adobe Research License, "
    "non-commercial research use only, github.com/weijielyu/FaceLift"
)

# how scenes and images are prepared for the published weights
DATA = {"num_inputs": 6, "input_size": 512, "target_size": 512}
DATA |= {"radius": 2.7, "frame": "world"}


def _dense(published: str, ours: str) -> Rule:
    return Rule(f"{published}.weight", f"{ours}/kernel", dense_kernel)


def _norm(published: str, ours: str) -> Rule:
    return Rule(f"{published}.weight", f"{ours}/scale")


_LAYER, _BLOCK = "transformer_layers.{i}", "block_{i:02d}"

RULES = (
    Rule("gaussian_position_embeddings", "global_tokens"),
    _dense("patch_embedder.1", "patch_embedder"),
    _norm("input_layer_norm", "input_norm"),
    _norm(f"{_LAYER}.norm1", f"{_BLOCK}/norm1"),
    _dense(f"{_LAYER}.attn.to_qkv", f"{_BLOCK}/attn/qkv"),
    _dense(f"{_LAYER}.attn.fc", f"{_BLOCK}/attn/fc"),
    _norm(f"{_LAYER}.norm2", f"{_BLOCK}/norm2"),
    _dense(f"{_LAYER}.mlp.mlp.0", f"{_BLOCK}/mlp_in"),
    _dense(f"{_LAYER}.mlp.mlp.2", f"{_BLOCK}/mlp_out"),
    _norm("gaussian_upsampler.layernorm", "global_head/norm"),
    _dense("gaussian_upsampler.linear", "global_head/linear"),
    _norm("pixel_gaussian_decoder.0", "pixel_head/norm"),
    _dense("pixel_gaussian_decoder.1", "pixel_head/linear"),
)

# The published files also hold the frozen VGG-19 of the perceptual loss. The converter
# writes it to a separate file, under these names without `vgg19/`.
PERCEPTUAL_RULES = tuple(
    Rule(
        f"loss_calculator.perceptual_loss_module.net.conv{{i}}.{leaf}",
        f"vgg19/conv{{i}}.{leaf}",
    )
    for leaf in ("weight", "bias")
)
