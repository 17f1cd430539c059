"""LGM's published names (3DTopia/LGM) to ours."""

from facelift_jax.convert.rules import Rule, conv_kernel, dense_kernel

LICENCE = "LGM's code and published weights: MIT licence, github.com/3DTopia/LGM"

# how scenes and pictures are made for the published weights
DATA = {"num_inputs": 4, "input_size": 256, "target_size": 512}
DATA |= {"radius": 1.5, "frame": "first_camera"}

NOT_OURS = r"(?!)"  # every tensor is the network's

_NETS = r"unet\.(down|up)_blocks\.(\d+)\.nets\.(\d+)\."
_ATTNS = r"unet\.(down|up)_blocks\.(\d+)\.attns\.(\d+)\."
_RESAMPLE = r"unet\.(down|up)_blocks\.(\d+)\.(downsample|upsample)\."
_MID_NETS = r"unet\.mid_block\.nets\.(\d+)\."
_MID_ATTNS = r"unet\.mid_block\.attns\.(\d+)\."

_OUR_NETS = r"unet/\1_blocks_\2/nets_\3/"
_OUR_ATTNS = r"unet/\1_blocks_\2/attns_\3/"
_OUR_MID_NETS = r"unet/mid_block/nets_\1/"
_OUR_MID_ATTNS = r"unet/mid_block/attns_\1/"

_CONVS = r"(conv1|conv2|shortcut)"

RULES = (
    Rule(r"unet\.(conv_in|conv_out)\.weight", r"unet/\1/kernel", conv_kernel),
    Rule(r"unet\.(conv_in|conv_out|norm_out)\.bias", r"unet/\1/bias"),
    Rule(r"unet\.norm_out\.weight", "unet/norm_out/scale"),
    Rule(r"conv\.weight", "conv/kernel", conv_kernel),
    Rule(r"conv\.bias", "conv/bias"),
    Rule(_NETS + _CONVS + r"\.weight", _OUR_NETS + r"\4/kernel", conv_kernel),
    Rule(_NETS + r"(norm[12])\.weight", _OUR_NETS + r"\4/scale"),
    Rule(_NETS + r"(\w+)\.bias", _OUR_NETS + r"\4/bias"),
    Rule(_ATTNS + r"norm\.weight", _OUR_ATTNS + "norm/scale"),
    Rule(_ATTNS + r"norm\.bias", _OUR_ATTNS + "norm/bias"),
    Rule(
        _ATTNS + r"attn\.(qkv|proj)\.weight",
        _OUR_ATTNS + r"attn/\4/kernel",
        dense_kernel,
    ),
    Rule(_ATTNS + r"attn\.proj\.bias", _OUR_ATTNS + "attn/proj/bias"),
    Rule(_RESAMPLE + "weight", r"unet/\1_blocks_\2/\3/kernel", conv_kernel),
    Rule(_RESAMPLE + "bias", r"unet/\1_blocks_\2/\3/bias"),
    Rule(_MID_NETS + _CONVS + r"\.weight", _OUR_MID_NETS + r"\2/kernel", conv_kernel),
    Rule(_MID_NETS + r"(norm[12])\.weight", _OUR_MID_NETS + r"\2/scale"),
    Rule(_MID_NETS + r"(\w+)\.bias", _OUR_MID_NETS + r"\2/bias"),
    Rule(_MID_ATTNS + r"norm\.weight", _OUR_MID_ATTNS + "norm/scale"),
    Rule(_MID_ATTNS + r"norm\.bias", _OUR_MID_ATTNS + "norm/bias"),
    Rule(
        _MID_ATTNS + r"attn\.(qkv|proj)\.weight",
        _OUR_MID_ATTNS + r"attn/\2/kernel",
        dense_kernel,
    ),
    Rule(_MID_ATTNS + r"attn\.proj\.bias", _OUR_MID_ATTNS + "attn/proj/bias"),
)
