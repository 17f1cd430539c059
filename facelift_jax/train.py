"""Training, read top to bottom: data, model, optimizer, step, loop, evaluation, save.

One scene passes, in this order: `source[i]`, `select_views`, `normalize_rig`,
`to_views`, `augment` (data/transforms.py), then `model.apply`, `render` and
`weighted_loss` (`make_train_step`).
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from facelift_jax import evaluate, pictures
from facelift_jax.data.pipeline import training_batches
from facelift_jax.data.sources import FolderSource
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.judge import (
    RenderFn,
    make_eval_step,
    make_renderer,
    make_shape_step,
    make_turntable,
)
from facelift_jax.objectives import (
    check_networks,
    describe_weights,
    load_networks,
    validate_weights,
    weighted_loss,
    weights_at,
)
from facelift_jax.report import Judged
from facelift_jax.results import Evaluation
from facelift_jax.structs import Batch, Views
from facelift_jax.training import checkpoint, optim, writer
from facelift_jax.training.mesh import (
    SCENES,
    make_mesh,
    shard_scenes,
    state_shardings,
)

AT_LEAST_ONE = (
    *(f"run.{x}" for x in ("num_steps", "batch_size", "fsdp", "keep_checkpoints")),
    *(f"run.{x}" for x in ("log_every", "save_every")),
    *(f"eval.{x}" for x in ("every", "num_targets", "turntable_frames")),
)
NEEDED = "?"  # of a setting that a recipe leaves to its user
# a resumed run may judge, save and report at other moments than it was started with
MAY_CHANGE = (r"eval\..*", r"run\.(log_every|save_every|keep_checkpoints)")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step reads and writes; what a checkpoint holds.

    Attributes:
      step: int32, batches seen; skipped ones count.
      num_skipped: int32, steps not taken: not finite, or of too large gradients.
      params: the network's parameters, float32.
      opt_state: the optimizer's state.
      key: PRNG key of the run; each step folds its number in.
    """

    step: jax.Array
    num_skipped: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def check_settings(config: Any) -> None:
    """Refuses settings that `train` could not use, before anything is made.

    Raises:
      ValueError: the first one found; one line.
    """
    for name in AT_LEAST_ONE:
        section, field = name.split(".")
        if config[section][field] < 1:
            raise ValueError(f"{name}={config[section][field]}: must be at least 1")
    if config.run.init_from == NEEDED:
        raise ValueError(
            "run.init_from: this recipe goes on from trained weights; name their "
            'checkpoint by --config.run.init_from=DIR, or "" to start from random ones'
        )
    validate_weights(config.loss.to_dict())
    check_networks(config)
    evaluate.build_model(config.model)
    evaluate.data_options(config.data, config.eval.num_targets)
    optim_config(config)
    make_mesh(config.run.fsdp, config.run.batch_size)


def make_train_step(
    model: Any,
    render_fn: RenderFn,
    weights: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    optim_config: optim.OptimConfig,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function (state, batch, networks) -> (state, measurements).

    `networks` are the weights that loss terms ask for by name, {} for most. A step
    whose loss or gradients are not finite changes nothing but the step count and
    reports `is_skipped`, one whose gradients are too large `is_over_norm`.
    Measurements: every loss term, the total, norms over the trained leaves, the
    learning rate, dropped list entries.
    """
    rate = optim.learning_rate(optim_config)
    limit = math.inf if optim_config.skip_norm is None else optim_config.skip_norm

    def loss_fn(params: Any, batch: Batch, networks: Any, key: jax.Array, step):
        gaussians, aux = model.apply(
            {"params": params}, batch.inputs, rngs={"dropout": key}
        )
        output = render_fn(gaussians, batch.targets.cameras)
        aux, now = {**aux, **networks}, weights_at(weights, step)
        total, terms = weighted_loss(output, batch.targets, aux, now)
        return total, (terms, output.dropped.sum())

    def train_step(state: TrainState, batch: Batch, networks: Any):
        key = jax.random.fold_in(state.key, state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (total, (terms, dropped)), grads = grad_fn(
            state.params, batch, networks, key, state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        trained = optim.select_trained(grads, optim_config.rules)
        norm = optax.tree.norm(trained)
        is_finite = optim.all_finite(total, norm)  # which has every entry
        is_over_norm = is_finite & (norm > limit)
        is_taken = is_finite & ~is_over_norm
        new, old = (params, opt_state), (state.params, state.opt_state)
        params, opt_state = optim.where_taken(is_taken, new, old)
        moved = optim.select_trained(updates, optim_config.rules)
        kept = optim.select_trained(params, optim_config.rules)
        measurements = {
            "total": total,
            **terms,
            "grad_norm": norm,
            "update_norm": optax.tree.norm(moved),
            "param_norm": optax.tree.norm(kept),
            "learning_rate": rate(state.step - state.num_skipped),
            "dropped": dropped,
            "is_skipped": ~is_finite,
            "is_over_norm": is_over_norm,
        }
        num_skipped = state.num_skipped + (~is_taken).astype(jnp.int32)
        state = TrainState(state.step + 1, num_skipped, params, opt_state, state.key)
        return state, measurements

    return train_step


def optim_config(config: Any) -> optim.OptimConfig:
    """The `optim` section, its own rules before those of its freeze preset.

    Raises:
      ValueError: an unknown preset, or settings that do not fit together.
    """
    section = config.optim.to_dict()
    presets = evaluate.build_model(config.model).freeze_presets
    preset = section.pop("freeze")
    if preset not in presets:
        raise ValueError(
            f"optim.freeze={preset!r}: unknown preset; known: {', '.join(presets)}"
        )
    rules = (*section.pop("rules"), *presets[preset])
    return optim.OptimConfig(**section, total_steps=config.run.num_steps, rules=rules)


def make_initializer(
    model: Any, views: Views, optim_config: optim.OptimConfig, seed: int
) -> tuple[Callable[[], TrainState], optax.GradientTransformation, str]:
    """A function that draws the state at step 0, its optimizer, the freeze report."""
    param_key, run_key = jax.random.split(jax.random.key(seed))

    def init_params():
        return model.init(param_key, views)["params"]

    shapes = jax.eval_shape(init_params)
    optimizer, report = optim.make_optimizer(optim_config, shapes)

    def init():
        params, zero = init_params(), jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, params, optimizer.init(params), run_key)

    return init, optimizer, report


def summarize(
    window: Sequence[tuple[int, Mapping[str, jax.Array]]],
) -> tuple[dict[str, float], list[int]]:
    """Means of the measurements since the last line, and the steps that were skipped.

    `train/dropped`, `train/skipped` and `train/over_norm` are counts, not means;
    skipped steps do not enter the means unless there is no other.
    """
    rows = [(step, jax.device_get(values)) for step, values in window]
    skipped = [step for step, row in rows if row["is_skipped"]]
    good = [row for step, row in rows if step not in skipped] or [rows[-1][1]]
    counts = ("dropped", "is_skipped", "is_over_norm")
    names = [name for name in rows[0][1] if name not in counts]
    line = {f"train/{n}": float(np.mean([row[n] for row in good])) for n in names}
    line["train/dropped"] = int(sum(row["dropped"] for _, row in rows))
    line["train/skipped"] = len(skipped)
    line["train/over_norm"] = int(sum(row["is_over_norm"] for _, row in rows))
    return line, skipped


def train(
    config: Any, workdir: Path, open_data: Callable[[], tuple[FolderSource, ...]]
) -> Evaluation:
    """Trains to `run.num_steps`, from the run directory's checkpoint if it has one.

    `open_data` gives the scenes to train on and the held-out ones; it is called when
    all else has been found good. Returns the last evaluation. The run directory holds
    config, metrics, checkpoints, pictures, curves, one scene's PLY and turntable, and
    at the end `complete.json`.

    Raises:
      ValueError: settings, data or a checkpoint that do not fit; one line.
      RuntimeError: too many steps were not finite.
    """
    run, is_writer = config.run, jax.process_index() == 0

    # model and optimizer
    check_settings(config)
    options = evaluate.data_options(config.data, config.eval.num_targets)
    settings = optim_config(config)
    model = evaluate.build_model(config.model)
    mesh = make_mesh(run.fsdp, run.batch_size)
    render_fn = make_renderer(options.background, **config.render)
    views = dummy_views(1, options.num_inputs, options.input_size)
    init, optimizer, report = make_initializer(model, views, settings, run.seed)
    logging.info("loss: %s", describe_weights(config.loss.to_dict()))
    logging.info("parameters\n%s", report)

    # run directory and data
    if is_writer:
        for change in writer.open_run(workdir, plain(config), MAY_CHANGE):
            logging.info("since the last start: %s", change)
    source, held_out = open_data()
    trained_on = evaluate.fingerprints(source)
    bad_scenes: set[int] = set()
    batches = training_batches(
        source,
        options,
        run.batch_size // jax.process_count(),
        run.seed,
        jax.process_index(),
        jax.process_count(),
        bad_scenes=bad_scenes,
        shares=source.shares,
    )

    # state: resume this run, else start from other weights, else from scratch
    shardings = state_shardings(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    checkpoints, skipped_steps = workdir / "checkpoints", []
    if checkpoint.latest_step(checkpoints) is not None:
        state, metadata = checkpoint.restore_checkpoint(
            checkpoints, state, data_iterator=batches
        )
        if metadata["trained_on"] != trained_on:
            raise ValueError(
                f"{workdir}: the scenes to train on are not those it was started with; "
                "restore the data set or choose another --workdir"
            )
        skipped_steps = metadata["skipped_steps"]
        bad_scenes.update(metadata["bad_scenes"])
        logging.info("resumed at step %d", int(state.step))
    elif run.init_from:
        params, excused = checkpoint.init_from(
            run.init_from, state.params, run.init_excuses
        )
        state = dataclasses.replace(state, params=params)
        logging.info("initialised from %s; excused: %s", run.init_from, excused)
    start = int(state.step)
    if is_writer:
        writer.cut_metrics(workdir, start)

    # step
    sharded = shard_scenes(render_fn, mesh)
    step_fn = make_train_step(
        model, sharded, config.loss.to_dict(), optimizer, settings
    )
    step_fn = jax.jit(step_fn, out_shardings=(shardings, None), donate_argnums=0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    networks = jax.device_put(load_networks(config), everywhere)
    eval_step = make_eval_step(model, render_fn, networks.get("lpips"))
    turn = make_turntable(render_fn, config.eval.turntable_frames)
    shape_step = make_shape_step(render_fn, turn)
    scenes = NamedSharding(mesh, SCENES)
    evaluation, window, clock = None, [], time.monotonic()

    # loop: step, then what is due; a step's line is written before its checkpoint
    for step in range(start + 1, run.num_steps + 1):
        batch = jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(scenes, x), next(batches)
        )
        state, measurements = step_fn(state, batch, networks)
        window.append((step, measurements))
        is_last = step == run.num_steps
        is_evaluated = is_last or step % config.eval.every == 0
        is_saved = is_last or step % run.save_every == 0
        if not (is_evaluated or is_saved or step == 1 or step % run.log_every == 0):
            continue
        line, skipped = summarize(window)
        skipped_steps, window = [*skipped_steps, *skipped], []
        rate = (step - start) / (time.monotonic() - clock)
        line["train/scenes_per_second"] = rate * run.batch_size
        line["train/bad_scenes"] = len(bad_scenes)
        if is_evaluated:
            sheets = workdir / "pictures" / f"step_{step:06d}" if is_writer else None
            evaluation = evaluate.evaluate(
                eval_step,
                state.params,
                held_out,
                options,
                config.eval.num_picture_scenes,
                sheets,
                shape_step if is_last else None,
            )
            line |= evaluation.figures
        if is_writer:
            writer.append_metrics(workdir, step, line)
            seconds = time.monotonic() - clock
            progress = writer.progress_line(step, run.num_steps, start, seconds)
            writer.show_progress(f"{progress}  {brief(line)}")
        if is_writer and is_evaluated:
            pictures.write_curves(workdir / "curves.png", writer.read_metrics(workdir))
        reason = optim.stop_reason(step, skipped_steps)
        if reason is not None:
            last = checkpoint.latest_step(checkpoints)
            raise RuntimeError(f"{reason}; the last good checkpoint is step {last}")
        if is_saved:
            checkpoint.save_checkpoint(
                checkpoints,
                step,
                state,
                metadata={
                    **plain(config),
                    "skipped_steps": skipped_steps,
                    "bad_scenes": sorted(bad_scenes),
                    "trained_on": trained_on,
                },
                keep=run.keep_checkpoints,
                data_iterator=batches,
            )
    batches.close()

    # one scene to hold in the hand, and the figures
    if evaluation is None:  # the run was complete but for this
        sheets = workdir / "pictures" / f"step_{start:06d}" if is_writer else None
        number = config.eval.num_picture_scenes
        evaluation = evaluate.evaluate(
            eval_step, state.params, held_out, options, number, sheets, shape_step
        )
    if is_writer:
        judged = Judged(str(workdir), plain(config))
        evaluation = evaluate.finish(
            workdir, evaluation, render_fn, turn, held_out, options, judged
        )
        writer.mark_complete(workdir, {"step": run.num_steps})
    return evaluation


def brief(line: Mapping[str, float]) -> str:
    """What a person wants to see at once of a line of metrics."""
    words = [f"loss {line['train/total']:.4f}"]
    if "gap" in line:
        inputs, held_out = line["inputs/psnr_fg"], line["held_out/psnr_fg"]
        words.append(f"psnr_fg inputs {inputs:.2f} held-out {held_out:.2f} dB")
        words.append(f"held-out iou {line['held_out/iou']:.3f}")
    for name, what in (("skipped", "not finite"), ("over_norm", "over skip_norm")):
        if line[f"train/{name}"]:
            words.append(f"{line[f'train/{name}']} steps {what}, not taken")
    return "  ".join(words)


def plain(config: Any) -> dict[str, Any]:
    """A config as nested dictionaries of JSON values."""
    return json.loads(config.to_json())
