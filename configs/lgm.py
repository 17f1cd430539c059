"""LGM on six calibrated cameras, trained from scratch on synthetic rodents.

    python -m facelift_jax.main --config configs/lgm.py            # LGM big, for a GPU
    python -m facelift_jax.main --config configs/lgm.py:demo       # two CPU cores

The argument names one variant (lrm, small, big, tiny, mini; default big) and options:
`demo` is a ten-minute run of the mini network at 32 px; `smoke` is a minute of it that
only proves that everything runs; `lpips` adds LGM's perceptual loss, which wants the
package lpips-j and --config.run.lpips=FOLDER or the files in the hub's cache: its
weights cannot be shipped, so the recipes do without. Any field can be set by a flag:
--config.run.seed=1.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

# variant -> (input size, target size) in pixels: LGM's options table
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
    small = options - {"lpips"}
    if small and variant not in (None, "mini"):
        raise ValueError(f"{' and '.join(sorted(small))} take the mini variant only")
    variant = variant or ("mini" if small else "big")
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
        _fit_two_cores(config)
    if small:
        config.data.update({"size": 32, "input_size": 32, "target_size": 32})
    if "smoke" in options:
        _prove_it_runs(config)
    return config.lock()


def _fit_two_cores(config: Any) -> None:
    """The mini network on two CPU cores: small batches, colour weighed by coverage."""
    config.model.dtype = "float32"
    # from LGM's own start 95 % of the opacities end below .01
    config.model.overrides.update({"scale_factor": 0.25, "opacity_logit": -2.0})
    config.loss.update({"rgb_mse": 0.0, "rgb_mse_fg": 1.0})
    config.data.num_scenes = 200
    config.data.num_held_out_scenes = 8
    config.data.num_targets = 4
    config.data.min_held_out = 2
    config.optim.learning_rate = 8e-4
    config.optim.warmup_steps = 150
    config.eval.update({"every": 400, "turntable_frames": 60})
    config.run.update({"num_steps": 800, "batch_size": 4})
    config.run.update({"log_every": 25, "save_every": 200})


def _prove_it_runs(config: Any) -> None:
    """Ten steps on a handful of scenes."""
    config.data.update({"num_scenes": 8, "num_held_out_scenes": 2})
    config.optim.warmup_steps = 2
    config.eval.update({"every": 10, "num_targets": 4})
    config.eval.update({"num_picture_scenes": 1, "turntable_frames": 8})
    config.run.update({"num_steps": 10, "batch_size": 2})
    config.run.update({"log_every": 2, "save_every": 5})
