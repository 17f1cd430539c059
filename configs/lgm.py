"""LGM on six calibrated cameras, trained from scratch on synthetic rodents.

    python -m facelift_jax.main --config configs/lgm.py            # LGM big, for a GPU
    python -m facelift_jax.main --config configs/lgm.py:demo       # two CPU cores

The demo takes five minutes on two CPU cores and reaches a held-out psnr_fg of 15.23 dB
and a held-out IoU of .707.

The argument names one variant (lrm, small, big, tiny, mini; default big) and options:

  demo: the mini network at 32 px for 640 steps.
  smoke: ten steps of the demo, to check that everything runs; about a minute.
  lpips: adds LGM's perceptual loss. It needs the package lpips-j and its weight files,
    which cannot be shipped: --config.loss.lpips_weights=FOLDER, or the Hugging Face
    cache. The other recipes do without it.

Every field is a flag, for example --config.run.seed=1.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

# variant -> (input size, target size) in pixels, as in LGM's options
SIZES = {
    "lrm": (256, 256),
    "small": (256, 256),
    "big": (256, 512),
    "tiny": (256, 256),
    "mini": (64, 64),
}
OPTIONS = ("demo", "smoke", "lpips")


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument` is what follows the colon."""
    variant, options = common.parse_argument(argument, tuple(SIZES), OPTIONS)
    short = options - {"lpips"}
    if short and variant not in (None, "mini"):
        raise ValueError(f"{' and '.join(sorted(short))}: only for the mini variant")
    variant = variant or ("mini" if short else "big")
    input_size, target_size = SIZES[variant]

    config: Any = ConfigDict()
    config.model = ConfigDict(
        {"name": "lgm", "variant": variant, "dtype": "bfloat16", "overrides": {}}
    )
    config.data = common.data_section(target_size, input_size)
    config.loss = common.loss_section()
    config.loss.update({"rgb_mse": 1.0, "alpha_mse": 1.0})
    config.loss.lpips = 1.0 if "lpips" in options else 0.0
    config.optim = common.optim_section(learning_rate=4e-4, warmup_steps=1000)
    config.optim.beta1_peak = 0.85
    config.render = ConfigDict({"backend": "", "antialiased": False})
    config.eval = common.eval_section()
    config.run = common.run_section(num_steps=30_000, batch_size=8)

    if variant == "mini":
        common.fit_two_cores(config, num_steps=640)
        # with LGM's initial opacity, 95 % of the opacities end below .01
        config.model.update({"overrides": {"opacity_logit": -2.0}})
    if short:
        config.data.update({"size": 32, "input_size": 32, "target_size": 32})
    if "smoke" in options:
        common.reduce_to_smoke_test(config)
    return config.lock()
