"""The training loop, from top to bottom: data, model, step, loop, evaluation, files.

A scene passes through these functions, in this order: `source[i]`, the selection of
views, the normalization of cameras, resizing and augmentation (data/examples.py), then
`model.apply`, `render` and `weighted_loss` (step.py).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from facelift_jax.builders import (
    build_model,
    data_options,
    make_renderer,
    optim_config,
)
from facelift_jax.checkpoints.checkpoint import save_checkpoint
from facelift_jax.data.options import DataOptions
from facelift_jax.data.pipeline import training_batches
from facelift_jax.data.scenes import FolderSource
from facelift_jax.data.validation.leakage import fingerprints
from facelift_jax.evaluation.results import Evaluation
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.io.progress import progress_line, show_progress
from facelift_jax.losses import describe_weights, load_networks, term_weights
from facelift_jax.structs import Batch
from facelift_jax.training import curves, profiling, run_dir, tensorboard
from facelift_jax.training.collapse_monitor import CollapseMonitor, describe
from facelift_jax.training.example_checks import check_examples
from facelift_jax.training.metrics_line import progress_text, summarize
from facelift_jax.training.restart import (
    RunRecord,
    require_finite_steps,
    restore_or_init,
)
from facelift_jax.training.run_evaluation import make_run_evaluator
from facelift_jax.training.settings import MAY_CHANGE, check_settings, plain
from facelift_jax.training.sharding import (
    make_mesh,
    shard_batch,
    shard_scenes,
    state_shardings,
)
from facelift_jax.training.step import make_initializer, make_train_step


def train(
    config: Any, workdir: Path, open_data: Callable[[], tuple[FolderSource, ...]]
) -> Evaluation:
    """Trains to `run.num_steps`, from the run directory's checkpoint if it has one.

    `open_data` returns the scenes to train on and the held-out scenes; it is called
    after the settings have been checked. Returns the last evaluation. The run directory
    holds the config, metrics, checkpoints, images, curves, one scene's PLY file and
    turntable, and at the end `complete.json`.

    Raises:
      ValueError: settings, data or a checkpoint cannot be used; one line.
      RuntimeError: too many steps were not finite, or the collapse monitor stops the
        run.
    """
    run, is_writer = config.run, jax.process_index() == 0
    checkpoints = workdir / "checkpoints"

    # ----- settings, model and optimizer ---------------------------------------------
    check_settings(config)
    options = data_options(config.data, config.eval.num_targets)
    optim_settings, weights = optim_config(config), term_weights(config.loss)
    model = build_model(config.model)
    mesh = make_mesh(run.fsdp, run.batch_size)
    render_fn = make_renderer(options.background, **config.render)
    views = dummy_views(1, options.num_inputs, options.input_size)
    init, optimizer, table = make_initializer(model, views, optim_settings, run.seed)
    logging.info("loss: %s", describe_weights(weights))
    logging.info("parameters\n%s", table)

    # ----- run directory and data ----------------------------------------------------
    if is_writer:
        for change in run_dir.open_run(workdir, plain(config), MAY_CHANGE):
            logging.info("changed since the last start: %s", change)
    source, held_out = open_data()
    record = RunRecord(trained_on=fingerprints(source))
    batches = _open_batches(source, options, run, record.bad_scenes)

    # ----- state: of this run, with the weights of another run, or new ---------------
    shardings = state_shardings(mesh, jax.eval_shape(init))
    state = jax.jit(init, out_shardings=shardings)()
    state = restore_or_init(run, checkpoints, state, batches, record)
    start, events = int(state.step), None
    if is_writer:
        run_dir.cut_metrics(workdir, start)
        events = tensorboard.open_events(workdir / "tensorboard", start)

    # ----- training step, evaluation, collapse monitor -------------------------------
    renderer, background = shard_scenes(render_fn, mesh), options.background
    step_fn = make_train_step(
        model, renderer, weights, optimizer, optim_settings, background
    )
    step_fn = jax.jit(step_fn, out_shardings=(shardings, None), donate_argnums=0)
    profiled_steps = profiling.parse_steps(run.profile, run.num_steps)
    step_fn = profiling.profiled(step_fn, profiled_steps, workdir / "profile")
    networks = load_networks(config.loss)
    networks = jax.device_put(networks, NamedSharding(mesh, PartitionSpec()))
    evaluator = make_run_evaluator(
        config, workdir, model, render_fn, held_out, options, networks.get("lpips")
    )
    monitor = CollapseMonitor(config, start, run_dir.latest_metrics(workdir))
    constants = check_examples(source, options)

    # ----- loop: one step, then what is due ------------------------------------------
    evaluation, window, clock = None, [], time.monotonic()
    for step in range(start + 1, run.num_steps + 1):
        batch = shard_batch(next(batches), mesh)
        state, measurements = step_fn(step, state, batch, networks)
        window.append((step, measurements))
        is_last = step == run.num_steps
        is_evaluated = is_last or step % config.eval.every == 0
        is_saved = is_last or step % run.save_every == 0
        if not (is_evaluated or is_saved or step == 1 or step % run.log_every == 0):
            continue

        # metrics since the last line; `constants` only in the first line after a start
        line, skipped = summarize(window)
        record.skipped_steps, window = [*record.skipped_steps, *skipped], []
        seconds = time.monotonic() - clock
        line["train/scenes_per_second"] = (step - start) / seconds * run.batch_size
        line["train/bad_scenes"] = len(record.bad_scenes)
        line, constants = line | constants, {}
        if is_evaluated:
            evaluation = evaluator.evaluate(step, state.params, is_last)
            line |= evaluation.metrics
        new_alarms = monitor.update(step, line)

        # files; the line of a step is written before its checkpoint
        if is_writer:
            run_dir.append_metrics(workdir, step, line, new_alarms)
            tensorboard.append_scalars(events, step, line)
            seconds = time.monotonic() - clock
            text = progress_text(line)
            show_progress(progress_line(step, run.num_steps, start, seconds, text))
        if is_writer and is_evaluated:
            curves.write_curves(workdir / "curves.png", run_dir.read_metrics(workdir))
        require_finite_steps(step, record.skipped_steps, checkpoints)
        is_stopped = monitor.alarms and is_evaluated and run.on_collapse == "stop"
        if is_saved or is_stopped:
            save_checkpoint(
                checkpoints,
                step,
                state,
                metadata=record.metadata(plain(config)),
                keep=run.keep_checkpoints,
                data_iterator=batches,
            )
        if is_stopped:
            raise RuntimeError(
                f"step {step}: {describe(monitor.alarms[0])}; the run is saved and can "
                "be continued with --config.run.on_collapse=warn"
            )
    batches.close()

    # ----- report, PLY file and turntable --------------------------------------------
    if evaluation is None:  # resumed after the last step
        evaluation = evaluator.evaluate(start, state.params, True)
    if is_writer:
        evaluation = evaluator.write(evaluation)
        run_dir.mark_complete(workdir, {"step": run.num_steps})
    return evaluation


def _open_batches(
    source: FolderSource, options: DataOptions, run: Any, bad_scenes: set[int]
) -> grain.DatasetIterator[Batch]:
    """The batches of this process; all processes together read `run.batch_size`."""
    return training_batches(
        source,
        options,
        run.batch_size // jax.process_count(),
        run.seed,
        jax.process_index(),
        jax.process_count(),
        bad_scenes=bad_scenes,
        shares=source.shares,
    )
