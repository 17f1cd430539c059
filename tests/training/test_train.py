"""The training step: equal on one and eight devices, deterministic, frozen, skipped."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from configs import gslrm
from configs.lgm import get_config
from facelift_jax.builders import build_model, make_renderer, optim_config
from facelift_jax.checkpoints.checkpoint import save_checkpoint
from facelift_jax.checkpoints.tree import flatten_names
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.losses import term_weights
from facelift_jax.structs import Batch, Gaussians, RenderOutput, Views
from facelift_jax.training import optim
from facelift_jax.training import sharding as mesh_of
from facelift_jax.training.metrics_line import progress_text, summarize
from facelift_jax.training.restart import restart_advice
from facelift_jax.training.settings import check_settings
from facelift_jax.training.step import make_initializer, make_train_step

NUM_SCENES, NUM_VIEWS, SIZE = 8, 2, 16
SIZES = {
    "down_channels": (32, 32),
    "down_attention": (False, True),
    "up_channels": (32,),
    "up_attention": (False,),
}
# float32 sums in another order, through a network; relative to the largest entry
TOLERANCE = 2e-3


def small_config(**optim_changes):
    config = get_config("smoke").unlock()
    config.model.overrides.update(SIZES)
    config.data.update({"num_inputs": NUM_VIEWS, "input_size": SIZE})
    config.data.update({"target_size": SIZE, "num_targets": 2})
    config.run.update({"batch_size": NUM_SCENES, "num_steps": 10})
    config.optim.update(optim_changes)
    return config


def random_batch(seed=0):
    rng = np.random.default_rng(seed)

    def views(num_views):
        views = dummy_views(NUM_SCENES, num_views, SIZE)
        images = rng.random(views.images.shape, np.float32)
        masks = (rng.random(views.masks.shape) > 0.5).astype(np.float32)
        return dataclasses.replace(views, images=images, masks=masks)

    return Batch(views(NUM_VIEWS), views(2), np.arange(NUM_SCENES, dtype=np.int32))


class OneColor(nn.Module):
    """One Gaussian per scene whose color is the only parameter; compiles fast."""

    @nn.compact
    def __call__(self, views: Views):
        color = self.param("color", nn.initializers.zeros, (3,))
        ones = jnp.ones((views.images.shape[0], 1))
        gaussians = Gaussians(
            means=jnp.zeros((*ones.shape, 3)),
            quats=jnp.ones((*ones.shape, 4)),
            scales=jnp.ones((*ones.shape, 3)),
            opacities=ones,
            sh=ones[..., None, None] * color.reshape(1, 1, 1, 3),
        )
        return gaussians, {}


def paint(gaussians, cameras):
    """A renderer that fills each image with the first Gaussian's color."""
    shape = (*cameras.viewmats.shape[:2], cameras.height, cameras.width)
    colors = jnp.broadcast_to(gaussians.sh[:, :, :1, None], (*shape, 3))
    alphas = jnp.ones((*shape, 1))
    return RenderOutput(colors, alphas, alphas, jnp.zeros(shape[:2], jnp.int32))


def build_one_color(config):
    """(jitted step, state) of `OneColor` on one device."""
    settings, weights = optim_config(config), term_weights(config.loss)
    model, views = OneColor(), dummy_views(1, NUM_VIEWS, SIZE)
    init, optimizer, _ = make_initializer(model, views, settings, seed=0)
    background = config.data.background
    step = make_train_step(model, paint, weights, optimizer, settings, background)
    return functools.partial(jax.jit(step), networks={}), jax.jit(init)()


def build(config, mesh):
    """(jitted step, state) of a config on a mesh."""
    settings = optim_config(config)
    model = build_model(config.model)
    views = dummy_views(1, NUM_VIEWS, SIZE)
    init, optimizer, _ = make_initializer(model, views, settings, seed=0)
    shardings = mesh_of.state_shardings(mesh, jax.eval_shape(init))
    state = jax.device_put(jax.jit(init)(), shardings)
    renderer = make_renderer(config.data.background, **config.render)
    renderer = mesh_of.shard_scenes(renderer, mesh)
    weights = term_weights(config.loss)
    background = config.data.background
    step = make_train_step(model, renderer, weights, optimizer, settings, background)
    step = jax.jit(step, out_shardings=(shardings, None))
    return functools.partial(step, networks={}), state


def make_mesh(num_devices, fsdp):
    devices = np.array(jax.devices()[:num_devices]).reshape(-1, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"))


def put(mesh, batch):
    sharding = NamedSharding(mesh, mesh_of.SCENES)
    return jax.tree.map(lambda x: jax.device_put(x, sharding), batch)


@pytest.fixture(scope="module")
def single():
    """(step, state, batch, result of one step) on one device."""
    mesh = make_mesh(1, 1)
    step, state = build(small_config(), mesh)
    batch = put(mesh, random_batch())
    return step, state, batch, step(state, batch)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_take_the_same_step(single, fsdp, monkeypatch):
    monkeypatch.setattr(mesh_of, "MIN_SHARDED_SIZE", 2**10)  # splits some leaves
    mesh = make_mesh(8, fsdp)
    step, state = build(small_config(), mesh)
    specs = {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)}
    assert any("fsdp" in spec for spec in specs) == (fsdp > 1)
    new_state, measurements = step(state, put(mesh, random_batch()))
    expected_state, expected = single[3]
    for name in expected:
        np.testing.assert_allclose(measurements[name], expected[name], rtol=1e-4)
    # the moments are the gradients and their squares. Adam's first update is the rate
    # times the sign of the gradient; rounding can flip it if the gradient is near zero
    moments = zip(
        jax.tree.leaves(new_state.opt_state),
        jax.tree.leaves(expected_state.opt_state),
        strict=True,
    )
    for actual, wanted in moments:
        scale = max(float(jnp.max(jnp.abs(wanted))), 1e-12)
        error = np.abs(np.asarray(actual) - np.asarray(wanted)).max()
        assert error <= TOLERANCE * scale, wanted.shape
    params = zip(
        jax.tree.leaves(new_state.params),
        jax.tree.leaves(expected_state.params),
        strict=True,
    )
    rate = float(expected["learning_rate"])
    for actual, wanted in params:
        error = np.abs(np.asarray(actual) - np.asarray(wanted))
        assert error.mean() <= 0.02 * rate, wanted.shape


def test_a_step_repeats_bit_for_bit(single):
    step, state, batch, (expected, _) = single
    again, _ = step(state, batch)
    for actual, wanted in zip(
        jax.tree.leaves(again.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_array_equal(actual, wanted)


def test_a_nonfinite_step_changes_nothing_and_is_counted(single):
    step, state, batch, _ = single
    images = batch.targets.images.at[0, 0, 0, 0, 0].set(jnp.nan)
    targets = dataclasses.replace(batch.targets, images=images)
    skipped, measurements = step(state, dataclasses.replace(batch, targets=targets))
    assert bool(measurements["is_skipped"])
    assert (int(skipped.step), int(skipped.num_skipped)) == (1, 1)
    pairs = zip(
        jax.tree.leaves((skipped.params, skipped.opt_state)),
        jax.tree.leaves((state.params, state.opt_state)),
        strict=True,
    )
    for actual, wanted in pairs:
        np.testing.assert_array_equal(actual, wanted)


def test_gradients_whose_norm_overflows_are_not_finite():
    """Clipping would divide finite gradients by infinity and leave only the decay."""
    config = small_config()
    config.loss.rgb_mse = 1e26
    step, state = build_one_color(config)
    new_state, measurements = step(state, random_batch())
    assert np.isfinite(measurements["total"])
    assert bool(measurements["is_skipped"])
    assert int(new_state.num_skipped) == 1


def test_a_step_of_too_large_gradients_changes_nothing_and_is_counted():
    """The limit is between two norms that differ by a few percent."""
    step, state = build_one_color(small_config())
    batch = random_batch()
    darker = dataclasses.replace(batch.targets, images=0.97 * batch.targets.images)
    darker = dataclasses.replace(batch, targets=darker)
    norms = [float(step(state, x)[1]["grad_norm"]) for x in (batch, darker)]
    assert 1e-3 < abs(norms[0] / norms[1] - 1) < 0.05
    step, state = build_one_color(small_config(skip_norm=sum(norms) / 2))
    for x, norm in zip((batch, darker), norms, strict=True):
        is_taken = norm < sum(norms) / 2
        new_state, measurements = step(state, x)
        assert not bool(measurements["is_skipped"])
        assert bool(measurements["is_over_norm"]) != is_taken
        assert int(new_state.num_skipped) == 1 - is_taken
        moved = [
            not np.array_equal(new, old)
            for new, old in zip(
                jax.tree.leaves(new_state.params),
                jax.tree.leaves(state.params),
                strict=True,
            )
        ]
        assert any(moved) == is_taken


def test_means_of_a_line_leave_out_nonfinite_steps():
    row = {"total": 1.0, "dropped": 0, "is_skipped": False, "is_over_norm": False}
    window = [(1, row), (2, row | {"total": np.nan, "is_skipped": True})]
    window.append((3, row | {"total": 3.0, "dropped": 5, "is_over_norm": True}))
    line, skipped = summarize(window)
    counts = {"train/dropped": 5, "train/skipped": 1, "train/over_norm": 1}
    assert line == {"train/total": 2.0, **counts}
    assert skipped == [2]


def test_the_share_of_steps_not_taken_needs_ten_steps():
    row = {"total": 1.0, "dropped": 0, "is_skipped": False, "is_over_norm": False}
    over = row | {"is_over_norm": True}
    window = [(step, over if step % 5 == 0 else row) for step in range(10)]
    assert summarize(window)[0]["monitor/not_taken"] == pytest.approx(0.2)
    assert "monitor/not_taken" not in summarize(window[:9])[0]


def test_the_progress_text_counts_steps_not_taken():
    line = {"train/total": 0.25, "train/skipped": 0, "train/over_norm": 3}
    assert progress_text(line) == "loss 0.2500  3 steps not taken: over skip_norm"
    assert progress_text(line | {"train/over_norm": 0}) == "loss 0.2500"


def test_the_last_good_checkpoint_is_from_before_the_nonfinite_steps(tmp_path):
    """Checkpoints between the first of those steps and the stop are not good."""
    for step in (5, 10):
        save_checkpoint(tmp_path, step, {"a": np.ones(1)}, metadata={}, keep=5)
    reason = optim.stop_reason(12, range(2, 12))
    assert reason is not None
    assert restart_advice(tmp_path, reason.first_step) == (
        f"no good checkpoint: {tmp_path} contains none from before step 2: start again "
        "with another --workdir"
    )
    reason = optim.stop_reason(16, range(6, 16))
    assert reason is not None
    assert restart_advice(tmp_path, reason.first_step) == (
        "the last good checkpoint is step 5: to resume from it, delete the later ones "
        f"in {tmp_path}"
    )


def test_freezing_the_encoder_changes_all_other_parameters(single):
    config = small_config(freeze="encoder_mid")
    mesh = make_mesh(1, 1)
    step, state = build(config, mesh)
    new_state, _ = step(state, single[2])
    before, after = flatten_names(state.params), flatten_names(new_state.params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    frozen = ("unet/conv_in/", "unet/down_blocks_", "unet/mid_block/")
    assert {name for name in before if not name.startswith(frozen)} == moved
    assert any(name.startswith(frozen) for name in before)


def test_lora_changes_only_the_adapters():
    config = gslrm.get_config("smoke,lora").unlock()
    config.data.update({"num_inputs": NUM_VIEWS, "input_size": SIZE})
    config.data.update({"target_size": SIZE, "num_targets": 2})
    config.model.overrides.update({"depth": 1, "width": 32})
    mesh = make_mesh(1, 1)
    step, state = build(config, mesh)
    batch, new_state = put(mesh, random_batch()), state
    for _ in range(3):
        new_state, _ = step(new_state, batch)
    before, after = flatten_names(state.params), flatten_names(new_state.params)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name in before if "/adapter_" in name}
    assert len(moved) == 8


def test_bad_settings_say_what_to_change():
    config = small_config(freeze="encoder")
    with pytest.raises(ValueError, match=r"optim.freeze='encoder': unknown preset; kn"):
        optim_config(config)
    with pytest.raises(ValueError, match="batch_size=4 is not a multiple of the 8 dev"):
        mesh_of.make_mesh(fsdp=1, batch_size=4)
    with pytest.raises(ValueError, match=r"run\.fsdp=3 does not divide the 8 devices"):
        mesh_of.make_mesh(fsdp=3, batch_size=8)


@pytest.mark.parametrize("argument", ["pretrain512", "finetune", "smoke,lora"])
def test_a_recipe_that_starts_from_weights_requires_their_path(argument):
    config = gslrm.get_config(argument).unlock()
    config.run.batch_size = 8  # tests have eight devices
    with pytest.raises(
        ValueError, match=r"run\.init_from: this recipe starts from trai"
    ):
        check_settings(config)
    config.run.init_from = ""
    check_settings(config)
