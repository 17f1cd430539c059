"""The training step: loss, gradients, update and measurements."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from facelift_jax.losses import weighted_loss, weights_at
from facelift_jax.metrics import monitor_metrics
from facelift_jax.structs import Batch, RenderFn, Views
from facelift_jax.training import optim


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and writes, and that a checkpoint holds.

    Attributes:
      step: int32, number of batches so far, including skipped ones.
      num_skipped: int32, number of steps that were not taken because they were not
        finite or their gradients were too large.
      params: the network's parameters, float32.
      opt_state: the optimizer's state.
      key: PRNG key of the run; each step folds its number into it.
    """

    step: jax.Array
    num_skipped: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array


def make_train_step(
    model: Any,
    render_fn: RenderFn,
    weights: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    optim_config: optim.OptimConfig,
    background: tuple[float, ...],
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """The pure function (state, batch, networks) -> (state, measurements).

    `networks` holds the parameters of the perceptual networks by name; most runs use
    {}. `weights` are those of the loss terms. `background` is the color that the
    targets should have around the object. A step whose loss or gradients are not finite
    changes only the step counts and reports `is_skipped`; a step whose gradients are
    too large does the same and reports `is_over_norm`. The measurements are the total
    loss, every loss term, norms over the trained leaves, the learning rate, the number
    of dropped tile entries, and the `monitor/...` metrics of the collapse monitor.
    """
    rate = optim.learning_rate(optim_config)
    limit = math.inf if optim_config.skip_norm is None else optim_config.skip_norm
    loss_fn = _make_loss(model, render_fn, weights, jnp.asarray(background))

    def train_step(state: TrainState, batch: Batch, networks: Any):
        key = jax.random.fold_in(state.key, state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (total, measured), grads = grad_fn(
            state.params, batch, networks, key, state.step
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        trained = optim.select_trained(grads, optim_config.rules)
        norm = optax.tree.norm(trained)
        is_finite = optim.all_finite(total, norm)  # the norm covers every gradient
        is_over_norm = is_finite & (norm > limit)
        is_taken = is_finite & ~is_over_norm
        new, old = (params, opt_state), (state.params, state.opt_state)
        params, opt_state = optim.where_taken(is_taken, new, old)
        moved = optim.select_trained(updates, optim_config.rules)
        kept = optim.select_trained(params, optim_config.rules)
        measurements = {
            "total": total,
            **measured,
            "grad_norm": norm,
            "update_norm": optax.tree.norm(moved),
            "param_norm": optax.tree.norm(kept),
            "learning_rate": rate(state.step - state.num_skipped),
            "is_skipped": ~is_finite,
            "is_over_norm": is_over_norm,
        }
        num_skipped = state.num_skipped + (~is_taken).astype(jnp.int32)
        state = TrainState(state.step + 1, num_skipped, params, opt_state, state.key)
        return state, measurements

    return train_step


def _make_loss(
    model: Any,
    render_fn: RenderFn,
    weights: Mapping[str, Any],
    background: jax.Array,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """(params, batch, networks, key, step) -> (total, measurements)."""

    def loss_fn(params: Any, batch: Batch, networks: Any, key: jax.Array, step):
        gaussians, aux = model.apply(
            {"params": params}, batch.inputs, rngs={"dropout": key}
        )
        output = render_fn(gaussians, batch.targets.cameras)
        aux, current = {**aux, **networks}, weights_at(weights, step)
        total, terms = weighted_loss(output, batch.targets, aux, current)
        monitored = monitor_metrics(output, gaussians, batch.targets, background)
        monitored = {f"monitor/{name}": value for name, value in monitored.items()}
        return total, {**terms, "dropped": output.dropped.sum(), **monitored}

    return loss_fn


def make_initializer(
    model: Any, views: Views, optim_config: optim.OptimConfig, seed: int
) -> tuple[Callable[[], TrainState], optax.GradientTransformation, str]:
    """A function that draws the state at step 0, the optimizer, the freeze report."""
    param_key, run_key = jax.random.split(jax.random.key(seed))

    def init_params():
        return model.init(param_key, views)["params"]

    shapes = jax.eval_shape(init_params)
    optimizer, report = optim.make_optimizer(optim_config, shapes)

    def init():
        params, zero = init_params(), jnp.zeros((), jnp.int32)
        return TrainState(zero, zero, params, optimizer.init(params), run_key)

    return init, optimizer, report
