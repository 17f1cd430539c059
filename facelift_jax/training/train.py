"""Training, read top to bottom: data, model, optimizer, step, loop, evaluation, save.

One scene passes, in this order: `source[i]`, `select_views`, `normalize_rig`,
`to_views`, `augment` (data/transforms.py), then `model.apply`, `render` and
`weighted_loss` (step.py).
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from facelift_jax.builders import (
    build_model,
    data_options,
    make_renderer,
    optim_config,
)
from facelift_jax.checkpoints import checkpoint
from facelift_jax.data.pipeline import training_batches
from facelift_jax.data.scenes import FolderSource
from facelift_jax.data.validation.leakage import fingerprints
from facelift_jax.evaluation.evaluator import evaluate, write_evaluation
from facelift_jax.evaluation.results import EvaluatedModel, Evaluation
from facelift_jax.evaluation.steps import (
    make_eval_step,
    make_shape_step,
    make_turntable,
)
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.io.progress import progress_line, show_progress
from facelift_jax.losses import (
    check_networks,
    describe_weights,
    load_networks,
    term_weights,
    validate_weights,
)
from facelift_jax.training import collapse_monitor, curves, optim, run_dir
from facelift_jax.training.example_checks import check_examples
from facelift_jax.training.sharding import (
    SCENES,
    make_mesh,
    shard_scenes,
    state_shardings,
)
from facelift_jax.training.step import make_initializer, make_train_step

AT_LEAST_ONE = (
    *(f"run.{x}" for x in ("num_steps", "batch_size", "fsdp", "keep_checkpoints")),
    *(f"run.{x}" for x in ("log_every", "save_every")),
    *(f"eval.{x}" for x in ("every", "num_targets", "turntable_frames")),
)
# a resumed run may judge, save and report at other moments than it was started with
MAY_CHANGE = (
    r"eval\..*",
    r"run\.(log_every|save_every|keep_checkpoints|on_collapse)",
)


def check_settings(config: Any) -> None:
    """Refuses settings that `train` could not use, before anything is made.

    Raises:
      ValueError: the first one found; one line.
    """
    for name in AT_LEAST_ONE:
        section, field = name.split(".")
        if config[section][field] < 1:
            raise ValueError(f"{name}={config[section][field]}: must be at least 1")
    if config.run.init_from is None:
        raise ValueError(
            "run.init_from: this recipe starts from trained weights; set "
            '--config.run.init_from=DIR to their checkpoint, or "" for random weights'
        )
    if config.run.on_collapse not in collapse_monitor.ACTIONS:
        raise ValueError(
            f"run.on_collapse={config.run.on_collapse!r}: choose from "
            f"{', '.join(collapse_monitor.ACTIONS)}"
        )
    validate_weights(term_weights(config.loss))
    check_networks(config.loss)
    build_model(config.model)
    data_options(config.data, config.eval.num_targets)
    optim_config(config)
    make_mesh(config.run.fsdp, config.run.batch_size)


def summarize(
    window: Sequence[tuple[int, Mapping[str, jax.Array]]],
) -> tuple[dict[str, float], list[int]]:
    """Means of the measurements since the last line, and the steps that were skipped.

    `train/dropped`, `train/skipped` and `train/over_norm` are counts, not means;
    skipped steps do not enter the means unless there is no other. `monitor/not_taken`
    is the share of steps that were not taken, where there are enough to speak of one.
    """
    rows = [(step, jax.device_get(values)) for step, values in window]
    skipped = [step for step, row in rows if row["is_skipped"]]
    good = [row for step, row in rows if step not in skipped] or [rows[-1][1]]
    counts = ("dropped", "is_skipped", "is_over_norm")
    names = {
        name: name if "/" in name else f"train/{name}"
        for name in rows[0][1]
        if name not in counts
    }
    line = {
        in_file: float(np.mean([row[name] for row in good]))
        for name, in_file in names.items()
    }
    line["train/dropped"] = int(sum(row["dropped"] for _, row in rows))
    line["train/skipped"] = len(skipped)
    line["train/over_norm"] = int(sum(row["is_over_norm"] for _, row in rows))
    not_taken = line["train/skipped"] + line["train/over_norm"]
    if len(rows) >= collapse_monitor.MIN_STEPS:
        line["monitor/not_taken"] = not_taken / len(rows)
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
    options = data_options(config.data, config.eval.num_targets)
    settings = optim_config(config)
    model = build_model(config.model)
    mesh = make_mesh(run.fsdp, run.batch_size)
    render_fn = make_renderer(options.background, **config.render)
    views = dummy_views(1, options.num_inputs, options.input_size)
    init, optimizer, report = make_initializer(model, views, settings, run.seed)
    logging.info("loss: %s", describe_weights(term_weights(config.loss)))
    logging.info("parameters\n%s", report)

    # run directory and data
    if is_writer:
        for change in run_dir.open_run(workdir, plain(config), MAY_CHANGE):
            logging.info("since the last start: %s", change)
    source, held_out = open_data()
    trained_on = fingerprints(source)
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
        params, ignored = checkpoint.init_from(
            run.init_from, state.params, run.init_ignore
        )
        state = dataclasses.replace(state, params=params)
        logging.info(
            "initialised from %s; ignored differences: %s", run.init_from, ignored
        )
    start = int(state.step)
    if is_writer:
        run_dir.cut_metrics(workdir, start)

    # step
    sharded = shard_scenes(render_fn, mesh)
    step_fn = make_train_step(
        model,
        sharded,
        term_weights(config.loss),
        optimizer,
        settings,
        options.background,
    )
    step_fn = jax.jit(step_fn, out_shardings=(shardings, None), donate_argnums=0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    networks = jax.device_put(load_networks(config.loss), everywhere)
    eval_step = make_eval_step(model, render_fn, networks.get("lpips"))
    turn = make_turntable(render_fn, config.eval.turntable_frames)
    shape_step = make_shape_step(render_fn, turn)
    scenes = NamedSharding(mesh, SCENES)
    monitor = collapse_monitor.monitor_settings(config)
    example_metrics = check_examples(source, options)
    known = run_dir.latest(workdir)
    alarms = collapse_monitor.find_alarms(start, known, monitor)
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
        line |= example_metrics  # constants: in the first line only
        example_metrics = {}
        if is_evaluated:
            sheets = workdir / "images" / f"step_{step:06d}" if is_writer else None
            evaluation = evaluate(
                eval_step,
                state.params,
                held_out,
                options,
                config.eval.num_image_scenes,
                sheets,
                shape_step if is_last else None,
            )
            line |= evaluation.metrics
        known |= line
        previous, alarms = alarms, collapse_monitor.find_alarms(step, known, monitor)
        new = collapse_monitor.describe_new(alarms, previous)
        if is_writer:
            run_dir.append_metrics(workdir, step, line, new)
            seconds = time.monotonic() - clock
            progress = progress_line(step, run.num_steps, start, seconds)
            show_progress(f"{progress}  {brief(line)}")
        if is_writer and is_evaluated:
            curves.write_curves(workdir / "curves.png", run_dir.read_metrics(workdir))
        for note in new:
            logging.warning("step %d: %s", step, note)
        reason = optim.stop_reason(step, skipped_steps)
        if reason is not None:
            advice = restart_advice(checkpoints, reason.first_step)
            raise RuntimeError(f"{reason.message}; {advice}")
        is_stopped = alarms and is_evaluated and run.on_collapse == "stop"
        if is_saved or is_stopped:
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
        if is_stopped:
            raise RuntimeError(
                f"step {step}: {collapse_monitor.describe(alarms[0])}; the run is "
                "saved and goes on by --config.run.on_collapse=warn"
            )
    batches.close()

    # one scene to hold in the hand, and the figures
    if evaluation is None:  # the run was complete but for this
        sheets = workdir / "images" / f"step_{start:06d}" if is_writer else None
        number = config.eval.num_image_scenes
        evaluation = evaluate(
            eval_step, state.params, held_out, options, number, sheets, shape_step
        )
    if is_writer:
        evaluated = EvaluatedModel(str(workdir), plain(config))
        evaluation = write_evaluation(
            workdir, evaluation, render_fn, turn, held_out, options, evaluated
        )
        run_dir.mark_complete(workdir, {"step": run.num_steps})
    return evaluation


def restart_advice(checkpoints: Path, first_bad_step: int) -> str:
    """Which checkpoint is from before the first step that was not finite."""
    good = checkpoint.last_step_before(checkpoints, first_bad_step)
    if good is None:
        return (
            f"no checkpoint is good: {checkpoints} holds none from before step "
            f"{first_bad_step}: start again with another --workdir"
        )
    return (
        f"the last good checkpoint is step {good}: to resume from it, delete the later "
        f"ones in {checkpoints}"
    )


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
