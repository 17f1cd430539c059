"""What all recipes share: parsing the argument, the sections, the small settings."""

from typing import Any

from ml_collections import ConfigDict, config_dict


def parse_argument(
    argument: str, variants: tuple[str, ...], options: tuple[str, ...]
) -> tuple[str | None, set[str]]:
    """Splits "variant,option,..." into one variant (or None) and the options.

    Raises:
      ValueError: an unknown word, or more than one variant; lists the known ones.
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
    """Synthetic rodents: six input cameras, held-out cameras all around the animal."""
    return ConfigDict(
        {
            # "": the synthetic set data/rodent-<size>, generated if it is missing
            "path": "",
            # several sets instead of `path`: one (path, weight) per set
            "mix": (),
            "size": size,
            "num_scenes": 1600,
            "num_held_out_scenes": 32,
            "bad_scenes_allowed": 0,
            "violations_allowed": 0,
            "input_size": input_size,
            "target_size": size,
            "num_inputs": 6,
            # positions of the views that inputs are drawn from; (): the flagged views
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
    """One weight per loss term, and the weight files of the perceptual networks.

    A term of weight zero is not computed.
    """
    terms = ("rgb_mse", "rgb_mse_fg", "alpha_mse", "ssim", "depth_l1")
    terms += ("depth_scale_invariant", "lpips", "perceptual", "points_distance")
    terms += ("pixel_align",)
    # the VGG-19 file of `perceptual`; the folder of the LPIPS files, where "" is the
    # Hugging Face cache if `lpips` has a weight, and no LPIPS at all if it has none
    files = {"vgg19_weights": "", "lpips_weights": ""}
    return ConfigDict(dict.fromkeys(terms, 0.0) | files)


def optim_section(learning_rate: float, warmup_steps: int) -> ConfigDict:
    """LGM's AdamW: one cycle, beta1 .95 -> .85 -> .95, decay of all parameters."""
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
            # a preset of the model; `rules` are (regex, rate) pairs that precede it
            "freeze": "none",
            "rules": (),
        }
    )


def eval_section() -> ConfigDict:
    """Evaluation of all held-out scenes from held-out cameras."""
    return ConfigDict(
        {
            "every": 2000,
            "num_targets": 12,
            "num_image_scenes": 2,
            "turntable_frames": 120,
        }
    )


def run_section(num_steps: int, batch_size: int) -> ConfigDict:
    """Length of the run, batch size, devices, and how often files are written."""
    return ConfigDict(
        {
            "seed": 0,
            "num_steps": num_steps,
            "batch_size": batch_size,
            "fsdp": 1,
            "log_every": 50,
            "save_every": 1000,
            "keep_checkpoints": 2,
            # what to do when the collapse monitor raises an alarm: "warn" or "stop"
            "on_collapse": "warn",
            # "START:STOP": the first and last step of a JAX profile; "" is none
            "profile": "",
            # a checkpoint to start from; regexes of parameters that may differ from it
            "init_from": "",
            "init_ignore": (),
        }
    )


def fit_two_cores(config: Any, num_steps: int) -> None:
    """Settings of a mini network for two CPU cores: small batches, few steps.

    The color loss is weighted by the object's coverage, so that small objects count.
    """
    config.model.dtype = "float32"
    config.model.overrides.scale_factor = 0.25  # 1 dB better after as many steps
    config.loss.update({"rgb_mse": 0.0, "rgb_mse_fg": 1.0, "alpha_mse": 1.0})
    config.data.update({"num_scenes": 200, "num_held_out_scenes": 8})
    config.data.update({"num_targets": 4, "min_held_out": 2})
    config.optim.update({"learning_rate": 8e-4, "warmup_steps": 150})
    config.eval.update({"every": num_steps // 2, "turntable_frames": 60})
    config.run.update({"num_steps": num_steps, "batch_size": 4})
    config.run.update({"log_every": 25, "save_every": 200})


def reduce_to_smoke_test(config: Any) -> None:
    """Ten steps on eight scenes: runs every part once and learns nothing."""
    config.data.update({"num_scenes": 8, "num_held_out_scenes": 2})
    config.optim.warmup_steps = 2
    config.eval.update({"every": 10, "num_targets": 4})
    config.eval.update({"num_image_scenes": 1, "turntable_frames": 8})
    config.run.update({"num_steps": 10, "batch_size": 2})
    config.run.update({"log_every": 2, "save_every": 5})
