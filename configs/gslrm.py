"""GS-LRM on calibrated cameras, trained on synthetic rodents.

    python -m facelift_jax.main --config configs/gslrm.py            # for a GPU
    python -m facelift_jax.main --config configs/gslrm.py:demo       # two CPU cores

The argument names one variant (facelift, small, mini; default facelift), one stage and
options. Stages are FaceLift's: `pretrain256` (the default), `pretrain512` from its
weights, `finetune` from those of the second; the last two want --config.run.init_from.
`perceptual` turns FaceLift's perceptual loss on, which wants --config.run.vgg19=FILE:
its weights cannot be shipped, so the recipes do without. `lora` trains low-rank
adapters of the blocks' matrices and leaves all else as --config.run.init_from has it.
`demo` is a ten-minute run of the mini network at 32 px; `smoke` is a minute of it that
only proves that everything runs. Any field can be set by a flag: --config.run.seed=1.

What differs from FaceLift's training: inputs are drawn from the views flagged as such,
or from --config.data.input_views (theirs: from all views). Of the targets,
`data.min_held_out` are no inputs and the others may be (theirs: all inputs are
targets). A step with gradients that are not finite is left out and counted (theirs: 0
and +-0.001 take the place of such entries). Steps left out do not move the rate's
schedule, and a run ends after its steps, not with the epoch.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common

VARIANTS = ("facelift", "small", "mini")
# FaceLift's training configurations: side in pixels, inputs, scenes a step, steps,
# warm-up steps, peak rate, steps before the perceptual loss sets in
STAGES = {
    "pretrain256": (256, 4, 64, 80_000, 2000, 4e-4, 5000),
    "pretrain512": (512, 4, 16, 20_000, 500, 1e-4, 500),
    "finetune": (512, 6, 16, 20_000, 500, 1e-4, 500),
}
POINTS_DISTANCE_STEPS = 1000  # of the first stage, which starts with that loss alone
OPTIONS = ("perceptual", "lora", "demo", "smoke")
ADAPTER_RANK = 8  # of `lora`


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument` is what follows the colon."""
    variant, options = common.parse_argument(argument, VARIANTS, (*STAGES, *OPTIONS))
    stages, small = options & set(STAGES), options & {"demo", "smoke"}
    if len(stages) > 1:
        raise ValueError(f"choose one stage, not {' and '.join(sorted(stages))}")
    if small and (options - small - {"lora"} or variant not in (None, "mini")):
        names = " and ".join(sorted(small))
        raise ValueError(f"{names} take the mini variant only, and no stage")
    variant = variant or ("mini" if small else "facelift")
    stage = next(iter(stages), "pretrain256")
    size, inputs, batch_size, steps, warmup, rate, quiet = STAGES[stage]
    config: Any = ConfigDict()
    config.model = ConfigDict(
        {"name": "gslrm", "variant": variant, "dtype": "bfloat16", "overrides": {}}
    )
    if "lora" in options:
        config.model.overrides = ConfigDict({"adapter_rank": ADAPTER_RANK})
    config.data = common.data_section(size, size)
    config.data.update({"num_inputs": inputs, "radius": 2.7, "frame": "world"})
    config.data.max_angle = 60.0
    config.loss = _loss(stage, quiet if "perceptual" in options else None)
    config.optim = common.optim_section(learning_rate=rate, warmup_steps=warmup)
    config.optim.update({"schedule": "warmup_cosine", "beta1": 0.9})
    config.optim.update({"decay": "matrices", "skip_norm": 20.0})
    config.render = ConfigDict({"backend": "", "antialiased": False})
    config.eval = common.eval_section()
    config.run = common.run_section(num_steps=steps, batch_size=batch_size)
    if stage != "pretrain256" or "lora" in options:
        config.run.init_from = common.NEEDED
    if "lora" in options:
        config.optim.freeze = "lora"
        config.run.init_ignore = (".*/adapter_[ab]",)
    if small:
        _fit_two_cores(config)
    if "smoke" in small:
        _prove_it_runs(config)
    return config.lock()


def _loss(stage: str, quiet: int | None) -> ConfigDict:
    """Squared error, at first the points' distance; perceptual after `quiet` steps."""
    loss: Any = common.loss_section()
    with loss.ignore_type():  # (weight, first step, step to stop at)
        loss.rgb_mse = 1.0
        if stage == "pretrain256":
            loss.points_distance = (0.1, 0, POINTS_DISTANCE_STEPS)
            loss.rgb_mse = (1.0, POINTS_DISTANCE_STEPS)
        if quiet is not None:
            loss.perceptual = (0.5, quiet)
    return loss


def _fit_two_cores(config: Any) -> None:
    """The mini network on two CPU cores: small batches, colour weighed by coverage."""
    config.model.dtype = "float32"
    config.model.overrides.scale_factor = 0.25  # as many steps, 1 dB more
    config.loss = common.loss_section()
    config.loss.update({"rgb_mse_fg": 1.0, "alpha_mse": 1.0})
    config.data.update({"size": 32, "input_size": 32, "target_size": 32})
    config.data.update({"num_scenes": 200, "num_held_out_scenes": 8})
    config.data.update({"num_inputs": 6, "num_targets": 4, "min_held_out": 2})
    config.data.max_angle = 180.0  # few steps: let them see all sides
    config.optim.update({"learning_rate": 8e-4, "warmup_steps": 150})
    config.eval.update({"every": 300, "turntable_frames": 60})
    config.run.update({"num_steps": 600, "batch_size": 4})
    config.run.update({"log_every": 25, "save_every": 200})


def _prove_it_runs(config: Any) -> None:
    """Ten steps on a handful of scenes."""
    config.data.update({"num_scenes": 8, "num_held_out_scenes": 2})
    config.optim.warmup_steps = 2
    config.eval.update({"every": 10, "num_targets": 4})
    config.eval.update({"num_picture_scenes": 1, "turntable_frames": 8})
    config.run.update({"num_steps": 10, "batch_size": 2})
    config.run.update({"log_every": 2, "save_every": 5})
