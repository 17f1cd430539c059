"""What every recipe shares: the argument after the colon, and the fixed sections."""

from ml_collections import ConfigDict, config_dict

NEEDED = "?"  # in the place of a setting that must be given


def parse_argument(
    argument: str, variants: tuple[str, ...], options: tuple[str, ...]
) -> tuple[str | None, set[str]]:
    """Splits "variant,option,..." into one variant (or None) and the options.

    Raises:
      ValueError: an unknown word, or more than one variant; lists what is known.
    """
    words = [word for word in argument.split(",") if word]
    unknown = [w for w in words if w not in variants and w not in options]
    if unknown:
        raise ValueError(
            f"unknown config argument {unknown[0]!r}; variants: {', '.join(variants)}; "
            f"options: {', '.join(options)}"
        )
    chosen = [word for word in words if word in variants]
    if len(chosen) > 1:
        raise ValueError(f"choose one variant, not {' and '.join(chosen)}")
    return (chosen or [None])[0], set(words) - set(chosen)


def data_section(size: int, input_size: int) -> ConfigDict:
    """Synthetic rodents, six cameras in, held-out cameras over the whole sphere."""
    return ConfigDict(
        {
            # "" is the synthetic set data/rodent-<size>, made where it is missing
            "path": "",
            # several sets instead: (path, weight) each
            "mix": (),
            "size": size,
            "num_scenes": 1600,
            "num_held_out_scenes": 32,
            "bad_scenes_allowed": 0,
            "violations_allowed": 0,
            "input_size": input_size,
            "target_size": size,
            "num_inputs": 6,
            # positions of the views to take inputs from; () takes the flagged ones
            "input_views": (),
            "num_targets": 8,
            "min_held_out": 4,
            "max_angle": 180.0,
            "background": (1.0, 1.0, 1.0),
            "radius": 1.5,
            "frame": "first_camera",
            "grid_distortion": 0.0,
            "camera_jitter": 0.0,
        }
    )


def loss_section() -> ConfigDict:
    """The weight of every loss term; zero: not computed."""
    terms = ("rgb_mse", "rgb_mse_fg", "alpha_mse", "ssim", "depth_l1")
    terms += ("depth_scale_invariant", "lpips", "perceptual", "points_distance")
    terms += ("pixel_align",)
    return ConfigDict(dict.fromkeys(terms, 0.0))


def optim_section(learning_rate: float, warmup_steps: int) -> ConfigDict:
    """LGM's AdamW: one cycle, beta1 .95 -> .85 -> .95, decay on every parameter."""
    return ConfigDict(
        {
            "schedule": "one_cycle",
            "learning_rate": learning_rate,
            "warmup_steps": warmup_steps,
            "beta1": 0.95,
            "beta1_peak": config_dict.placeholder(float),
            "beta2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.05,
            "decay": "all",
            "clip_norm": 1.0,
            "skip_norm": config_dict.placeholder(float),
            # a preset of the model, and (regex, value) rules tried before it
            "freeze": "none",
            "rules": (),
        }
    )


def eval_section() -> ConfigDict:
    """Every held-out scene, held-out cameras; pictures of the first scenes."""
    return ConfigDict(
        {
            "every": 2000,
            "num_targets": 12,
            "num_picture_scenes": 2,
            "turntable_frames": 120,
        }
    )


def run_section(num_steps: int, batch_size: int) -> ConfigDict:
    """How long, how wide, how often."""
    return ConfigDict(
        {
            "seed": 0,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "fsdp": 1,
            "log_every": 50,
            "save_every": 1000,
            "keep_checkpoints": 2,
            # what the collapse watch does when it finds one: "warn" or "stop"
            "on_collapse": "warn",
            # the file of `perceptual`'s weights, where that loss has a weight
            "vgg19": "",
            # the folder of LPIPS' weight files; "" is the hub's cache, where its loss
            # has a weight, and no LPIPS among the figures where it has none
            "lpips": "",
            # a checkpoint to start from, and regexes of leaves that may differ from it
            "init_from": "",
            "init_ignore": (),
        }
    )
