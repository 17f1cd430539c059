"""AdamW with a one-cycle or warm-up-cosine schedule, and frozen parameters.

Schedules count optimizer steps from zero: the first step uses the value at 0. Skipped
steps do not count (see `where_taken`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from facelift_jax.checkpoints import tree

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]

# PyTorch's OneCycleLR: the rate starts at peak / 25 and ends at start / 10,000.
START_DIVISOR = 25.0
END_DIVISOR = 1e4

# A run stops after so many skipped steps in a row, or more than that in a window.
MAX_SKIPPED_IN_A_ROW = 10
SKIP_WINDOW = 1000
MAX_SKIPPED_IN_WINDOW = 10


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer; the `optim` section of a config.

    Attributes:
      schedule: of the learning rate, "one_cycle" or "warmup_cosine".
      learning_rate: the peak.
      total_steps: length of the schedule.
      beta1: of AdamW.
      beta2: of AdamW.
      eps: of AdamW.
      weight_decay: of AdamW.
      clip_norm: bound on the global norm of the trained gradients; None is no bound.
      warmup_steps: may be fractional: PyTorch's warm-up is a share of all steps.
      beta1_peak: beta1 at the peak rate, "one_cycle" only; None keeps beta1 constant.
      decay: parameters that decay: "all", or "matrices" (two or more dimensions).
      skip_norm: a step whose norm before clipping is larger is not taken; None is no
        bound.
      rules: (regex, value) pairs in order, matched against whole parameter names. A
        number scales the learning rate, None freezes the parameter.
    """

    schedule: str
    learning_rate: float
    total_steps: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_norm: float | None
    warmup_steps: float
    beta1_peak: float | None = None
    decay: str = "all"
    skip_norm: float | None = None
    rules: Sequence[tuple[str, float | None]] = ((".*", 1.0),)

    def __post_init__(self):
        if self.schedule not in ("one_cycle", "warmup_cosine"):
            _refuse("schedule", self.schedule, "'one_cycle' or 'warmup_cosine'")
        if self.decay not in ("all", "matrices"):
            _refuse("decay", self.decay, "'all' or 'matrices'")
        if self.total_steps < 1:
            _refuse("total_steps", self.total_steps, "at least 1")
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"optim: a warm-up of {self.warmup_steps:g} steps does not fit in "
                f"total_steps={self.total_steps}: shorten it"
            )
        if self.beta1_peak is not None and self.schedule != "one_cycle":
            _refuse("beta1_peak", self.beta1_peak, "None unless schedule='one_cycle'")
        for name in ("beta1", "beta2", "beta1_peak"):
            beta = getattr(self, name)
            if beta is not None and not 0 <= beta < 1:
                _refuse(name, beta, "in [0, 1)")
        for name in ("learning_rate", "eps", "clip_norm", "skip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                _refuse(name, value, "positive")
        if not 0 <= self.weight_decay < math.inf:
            _refuse("weight_decay", self.weight_decay, "zero or more")
        for pattern, value in self.rules:
            if value is not None and not 0 < value < math.inf:
                _refuse(f"rules {pattern!r}", value, "positive, or None to freeze")


def learning_rate(config: OptimConfig) -> Schedule:
    """The learning rate as a function of the optimizer step.

    "one_cycle" is PyTorch's OneCycleLR with cosine phases. "warmup_cosine" rises
    linearly from zero and falls along a cosine to zero at total_steps.
    """
    peak = config.learning_rate
    if config.schedule == "one_cycle":
        start = peak / START_DIVISOR
        return _one_cycle(config, start, peak, start / END_DIVISOR)
    warmup = config.warmup_steps

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rising = count / max(warmup, 1.0)
        left = (config.total_steps - count) / (config.total_steps - warmup)
        return jnp.where(count < warmup, peak * rising, _cosine(peak, 0.0, left))

    return schedule


def beta1(config: OptimConfig) -> Schedule:
    """AdamW's beta1 as a function of the optimizer step."""
    if config.beta1_peak is None:
        return lambda count: config.beta1
    return _one_cycle(config, config.beta1, config.beta1_peak, config.beta1)


def make_optimizer(
    config: OptimConfig, params: Any
) -> tuple[optax.GradientTransformation, str]:
    """AdamW over the trained leaves of `params`, and the freeze report to log.

    Frozen leaves keep every bit, have no moments and are not part of the clipping norm.

    Raises:
      ValueError: rules that do not match the names of `params`.
    """
    values = tree.first_match(tree.flatten_names(params), config.rules)
    if all(value is None for value in values.values()):
        raise ValueError(
            "optim: rules freeze every parameter: nothing to train; change "
            "optim.freeze or optim.rules"
        )
    treedef = jax.tree.structure(params)
    labels = ["frozen" if v is None else "trained" for v in values.values()]
    multipliers = [1.0 if v is None else float(v) for v in values.values()]
    optimizer = optax.chain(
        optax.multi_transform(
            {"trained": _adamw(config), "frozen": _freeze()},
            treedef.unflatten(labels),
        ),
        _scale_leaves(treedef.unflatten(multipliers)),
    )
    return optimizer, freeze_report(params, config.rules)


def select_trained(
    params: Any, rules: Sequence[tuple[str, float | None]]
) -> dict[str, Any]:
    """The trained leaves, by name, of a tree with the structure of the parameters.

    Norms and finiteness use only these, so that the compiler can remove the backward
    pass of frozen leaves.
    """
    named = tree.flatten_names(params)
    values = tree.first_match(named, rules)
    return {name: leaf for name, leaf in named.items() if values[name] is not None}


def freeze_report(params: Any, rules: Sequence[tuple[str, float | None]]) -> str:
    """A table of the rules: tensors, parameters, share of all, rate multiplier."""
    sizes = {
        name: math.prod(leaf.shape) for name, leaf in tree.flatten_names(params).items()
    }
    deciding = tree.match_rules(list(sizes), [pattern for pattern, _ in rules])
    total = sum(sizes.values())
    rows = []
    trained = []
    for index, (pattern, value) in enumerate(rules):
        group = [sizes[name] for name in sizes if deciding[name] == index]
        trained += [] if value is None else group
        rate = "frozen" if value is None else f"x {value:g}"
        rows.append((pattern, len(group), sum(group), rate))
    rows.append(("trained", len(trained), sum(trained), f"of {total:,}"))
    width = max(len(row[0]) for row in rows)
    header = f"{'rule':<{width}}  tensors    parameters    share  learning rate"
    lines = [
        f"{pattern:<{width}}  {tensors:>7}  {parameters:>12,}  "
        f"{100 * parameters / total:>5.1f} %  {rate}"
        for pattern, tensors, parameters, rate in rows
    ]
    return "\n".join([header, *lines])


def all_finite(*trees: Any) -> jax.Array:
    """Scalar bool: whether all entries of all leaves are finite."""
    leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(trees)]
    return jnp.stack(leaves).all()


def where_taken(is_taken: jax.Array, new: Any, old: Any) -> Any:
    """`new` if the step is taken, else `old`, bit for bit."""
    return jax.tree.map(lambda n, o: jnp.where(is_taken, n, o), new, old)


class StopReason(NamedTuple):
    """Why training must stop, and the first of the steps that were not finite."""

    message: str
    first_step: int


def stop_reason(step: int, skipped_steps: Sequence[int]) -> StopReason | None:
    """Why training, now at `step`, must stop; None to continue.

    `skipped_steps` are all steps so far, ascending, that were not finite. Ten in a
    row, or more than 1 % of any 1,000 in a row, stop the run. All steps are examined
    at every call, so nothing is missed between calls.
    """
    runs = (
        (MAX_SKIPPED_IN_A_ROW, MAX_SKIPPED_IN_A_ROW),
        (MAX_SKIPPED_IN_WINDOW + 1, SKIP_WINDOW),
    )
    for count, window in runs:
        for first, last in zip(skipped_steps, skipped_steps[count - 1 :], strict=False):
            if last - first < window:
                return StopReason(
                    f"step {step}: {count} of {window:,} steps in a row were not "
                    f"finite (steps {first} to {last})",
                    first,
                )
    return None


class AdamState(NamedTuple):
    """Steps taken and the two moments."""

    count: jax.typing.ArrayLike
    mu: Any
    nu: Any


def scale_by_adam(
    beta1: Schedule, beta2: float, eps: float
) -> optax.GradientTransformation:
    """Adam with a schedule for beta1, like PyTorch's AdamW under OneCycleLR.

    The bias correction uses the current beta1: 1 - beta1(count)^steps (Kingma and Ba,
    arXiv:1412.6980, section 3, with a variable beta1).
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return AdamState(jnp.zeros((), jnp.int32), mu=zeros, nu=zeros)

    def update(updates, state, params=None):
        del params
        b1 = beta1(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, beta2, 2)
        count = optax.safe_increment(state.count)
        steps = jnp.float32(count)
        scale_mu, scale_nu = 1 - b1**steps, 1 - beta2**steps
        updates = jax.tree.map(
            lambda m, v: (m / scale_mu) / (jnp.sqrt(v / scale_nu) + eps), mu, nu
        )
        return updates, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _adamw(config: OptimConfig) -> optax.GradientTransformation:
    """Clipping, Adam, decoupled decay, rate: the order of PyTorch's AdamW."""

    def decayed(params):
        return jax.tree.map(lambda p: config.decay == "all" or p.ndim >= 2, params)

    clip = (
        []
        if config.clip_norm is None
        else [optax.clip_by_global_norm(config.clip_norm)]
    )
    return optax.chain(
        *clip,
        scale_by_adam(beta1(config), config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate(config)),
    )


def _freeze() -> optax.GradientTransformation:
    """Updates of -0.0, because adding 0.0 turns a parameter of -0.0 into 0.0."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, -0.0), updates)
    )


def _scale_leaves(multipliers: Any) -> optax.GradientTransformation:
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, m: u * m, updates, multipliers)
    )


def _one_cycle(config: OptimConfig, start: float, peak: float, end: float) -> Schedule:
    """Cosine from start to peak over the warm-up, then to end at the last step."""
    # PyTorch's count: a warm-up of W steps peaks at W - 1, T steps end at T - 1.
    top = config.warmup_steps - 1
    last = config.total_steps - 1

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        rising = _cosine(start, peak, (top - count) / max(top, 1.0))
        falling = _cosine(peak, end, (last - count) / (last - top))
        return jnp.where(count < top, rising, falling)

    return schedule


def _cosine(start: float, end: float, left: jax.Array) -> jax.Array:
    """Half a cosine from start (1 left) to end (0 left); accurate near the end too."""
    return end + (start - end) * jnp.sin(math.pi / 2 * jnp.clip(left, 0, 1)) ** 2


def _refuse(name: str, value: Any, expected: str) -> None:
    raise ValueError(f"optim: {name}={value!r} must be {expected}")
