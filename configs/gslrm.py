"""GS-LRM on calibrated cameras, trained on synthetic rodents.

    python -m facelift_jax.main --config configs/gslrm.py            # for a GPU
    python -m facelift_jax.main --config configs/gslrm.py:demo       # two CPU cores

The demo takes 495 s on two CPU cores and reaches a held-out psnr_fg of 14.68 dB and a
held-out IoU of .679.

The argument names one variant (facelift, small, mini; default facelift), one stage of
FaceLift's training and options. The stages are `pretrain256` (the default),
`pretrain512`, which starts from the weights of the first, and `finetune`, which starts
from those of the second; the last two need --config.run.init_from. The options are:

  demo: the mini network at 32 px for 600 steps.
  smoke: ten steps of the demo, to check that everything runs; about a minute.
  perceptual: adds FaceLift's perceptual loss. It needs a weight file that cannot be
    shipped: --config.loss.vgg19_weights=FILE. The other recipes do without it.
  lora: trains low-rank adapters of the matrices of the transformer blocks and keeps all
    other parameters as they are in --config.run.init_from.

Every field is a flag, for example --config.run.seed=1.

Differences from FaceLift's training: inputs are drawn from the views that are flagged
as inputs, or from --config.data.input_views (FaceLift: from all views). Of the targets,
`data.min_held_out` are not inputs and the others may be (FaceLift: all inputs are
targets). A step whose gradients are not finite is skipped and counted (FaceLift
replaces such entries by 0 and +-0.001). Skipped steps do not advance the learning rate
schedule, and a run ends after its number of steps, not at the end of an epoch.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from configs import common


class Stage(NamedTuple):
    """One stage of FaceLift's training.

    Attributes:
      size: side of inputs and targets, pixels.
      num_inputs: input views per scene.
      batch_size: scenes per step.
      num_steps: length of the stage.
      warmup_steps: steps until the peak learning rate.
      learning_rate: the peak.
      perceptual_start: first step with the perceptual loss.
    """

    size: int
    num_inputs: int
    batch_size: int
    num_steps: int
    warmup_steps: int
    learning_rate: float
    perceptual_start: int


STAGES = {
    "pretrain256": Stage(
        size=256,
        num_inputs=4,
        batch_size=64,
        num_steps=80_000,
        warmup_steps=2000,
        learning_rate=4e-4,
        perceptual_start=5000,
    ),
    "pretrain512": Stage(
        size=512,
        num_inputs=4,
        batch_size=16,
        num_steps=20_000,
        warmup_steps=500,
        learning_rate=1e-4,
        perceptual_start=500,
    ),
    "finetune": Stage(
        size=512,
        num_inputs=6,
        batch_size=16,
        num_steps=20_000,
        warmup_steps=500,
        learning_rate=1e-4,
        perceptual_start=500,
    ),
}
VARIANTS = ("facelift", "small", "mini")
OPTIONS = ("perceptual", "lora", "demo", "smoke")
POINTS_DISTANCE_STEPS = 1000  # pretrain256 starts with this loss term alone
ADAPTER_RANK = 8  # of `lora`


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument` is what follows the colon."""
    variant, options = common.parse_argument(argument, VARIANTS, (*STAGES, *OPTIONS))
    stages, short = options & set(STAGES), options & {"demo", "smoke"}
    if len(stages) > 1:
        raise ValueError(f"choose one stage, not {' and '.join(sorted(stages))}")
    if short and (options - short - {"lora"} or variant not in (None, "mini")):
        names = " and ".join(sorted(short))
        raise ValueError(
            f"{names}: only for the mini variant, without a stage and perceptual"
        )
    variant = variant or ("mini" if short else "facelift")
    name = next(iter(stages), "pretrain256")
    stage = STAGES[name]

    config: Any = ConfigDict()
    config.model = ConfigDict(
        {"name": "gslrm", "variant": variant, "dtype": "bfloat16", "overrides": {}}
    )
    config.data = common.data_section(stage.size, stage.size)
    config.data.update({"radius": 2.7, "frame": "world"})
    config.data.update({"num_inputs": stage.num_inputs, "max_angle": 60.0})
    config.loss = common.loss_section()
    config.optim = common.optim_section(stage.learning_rate, stage.warmup_steps)
    config.optim.update({"schedule": "warmup_cosine", "beta1": 0.9})
    config.optim.update({"decay": "matrices", "skip_norm": 20.0})
    config.render = ConfigDict({"backend": "", "antialiased": False})
    config.eval = common.eval_section()
    config.run = common.run_section(stage.num_steps, stage.batch_size)

    if short:
        common.fit_two_cores(config, num_steps=600)
        config.data.update({"size": 32, "input_size": 32, "target_size": 32})
        # with few steps, every example shows all sides of the object
        config.data.update({"num_inputs": 6, "max_angle": 180.0})
    else:
        _schedule_losses(config.loss, name, "perceptual" in options)
    if "smoke" in short:
        common.reduce_to_smoke_test(config)
    if name != "pretrain256" or "lora" in options:
        # None: check_settings requires a value. A required placeholder cannot be locked
        config.run.init_from = config_dict.placeholder(str)
    if "lora" in options:
        config.model.update({"overrides": {"adapter_rank": ADAPTER_RANK}})
        config.optim.freeze = "lora"
        config.run.init_ignore = (".*/adapter_[ab]",)
    return config.lock()


def _schedule_losses(loss: Any, stage: str, use_perceptual: bool) -> None:
    """Sets FaceLift's weights: (weight, first step), (weight, first step, stop)."""
    with loss.ignore_type():  # numbers become tuples
        loss.rgb_mse = 1.0
        if stage == "pretrain256":
            loss.points_distance = (0.1, 0, POINTS_DISTANCE_STEPS)
            loss.rgb_mse = (1.0, POINTS_DISTANCE_STEPS)
        if use_perceptual:
            loss.perceptual = (0.5, STAGES[stage].perceptual_start)
