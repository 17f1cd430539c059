"""FaceLift's published names of GS-LRM to ours."""

from facelift_jax.convert.rules import Rule, dense_kernel

LICENCE = (
    "FaceLift's GS-LRM model files and published weights: Adobe Research License, "
    "non-commercial research use only, github.com/weijielyu/FaceLift"
)

# how scenes and pictures are made for the published weights
DATA = {"num_inputs": 6, "input_size": 512, "target_size": 512}
DATA |= {"radius": 2.7, "frame": "world"}

# The frozen VGG-19 of the perceptual loss travels in the same dictionary; the group is
# a tensor's name in the file of its own that the command writes.
NOT_OURS = r"loss_calculator\.perceptual_loss_module\.net\.(conv\d+\.(?:weight|bias))"


def _block(digits: str, target: str) -> tuple[Rule, ...]:
    """Rules of the blocks whose number is written with `digits`."""
    layer = rf"transformer_layers\.({digits})\."
    return (
        Rule(layer + r"(norm[12])\.weight", target + r"\2/scale"),
        Rule(layer + r"attn\.to_qkv\.weight", target + "attn/qkv/kernel", dense_kernel),
        Rule(layer + r"attn\.fc\.weight", target + "attn/fc/kernel", dense_kernel),
        Rule(layer + r"mlp\.mlp\.0\.weight", target + "mlp_in/kernel", dense_kernel),
        Rule(layer + r"mlp\.mlp\.2\.weight", target + "mlp_out/kernel", dense_kernel),
    )


RULES = (
    Rule("gaussian_position_embeddings", "global_tokens"),
    Rule(r"patch_embedder\.1\.weight", "patch_embedder/kernel", dense_kernel),
    Rule(r"input_layer_norm\.weight", "input_norm/scale"),
    *_block(r"\d", r"block_0\1/"),
    *_block(r"\d\d", r"block_\1/"),
    Rule(r"gaussian_upsampler\.layernorm\.weight", "global_head/norm/scale"),
    Rule(
        r"gaussian_upsampler\.linear\.weight", "global_head/linear/kernel", dense_kernel
    ),
    Rule(r"pixel_gaussian_decoder\.0\.weight", "pixel_head/norm/scale"),
    Rule(
        r"pixel_gaussian_decoder\.1\.weight", "pixel_head/linear/kernel", dense_kernel
    ),
)
