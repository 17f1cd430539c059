"""Adapters trained, merged, exported: the base and the images do not change."""

import json

import jax
import numpy as np
import plyfile
import pytest
from gslrm_recipe import TINY, random_params
from lgm_recipe import random_views
from runs import ROOT, command, finish

from facelift_jax.builders import (
    build_model,
    data_options,
    make_refiner,
    make_renderer,
)
from facelift_jax.checkpoints.checkpoint import load_params, save_params
from facelift_jax.checkpoints.tree import flatten_names
from facelift_jax.convert import abstract_params
from facelift_jax.convert.merge_lora import main
from facelift_jax.data import rodent
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.steps import make_eval_step
from facelift_jax.export import ply
from facelift_jax.models import get_model
from facelift_jax.reconstruct import reconstruct_scene

TOLERANCES = {
    "gaussians": 1e-5,  # float32 sums in another order, values up to a few units
    "colors": 1e-5,  # likewise, in [0, 1]
    # where two Gaussians lie at nearly the same depth, rounding decides their order,
    # which moves a color by the product of their opacities times their contrast
    "flipped share": 0.01,
    "flipped": 1e-3,
}


def save_model(path, **overrides):
    model = get_model("gslrm", **TINY, **overrides)
    section = {"name": "gslrm", "variant": "mini", "dtype": "float32"}
    section["overrides"] = {**TINY, **overrides}
    metadata = {"model": section, "trained_on": ["a"], "data": {"radius": 2.7}}
    save_params(path, random_params(model), metadata)
    return metadata


def test_the_result_is_a_checkpoint_of_the_plain_network(tmp_path, capsys):
    metadata = save_model(tmp_path / "run", adapter_rank=3)
    main(["--checkpoint", str(tmp_path / "run"), "--dst", str(tmp_path / "merged")])
    assert "adapters of rank 3" in capsys.readouterr().out
    params, merged = load_params(tmp_path / "merged")
    plain = abstract_params(build_model(merged["model"]))
    assert jax.tree.structure(params) == jax.tree.structure(plain)
    before = load_params(tmp_path / "run")[0]["block_01"]["mlp_in"]
    product = before["adapter_a"] @ before["adapter_b"]
    after = params["block_01"]["mlp_in"]["kernel"]
    np.testing.assert_allclose(after, before["kernel"] + product, rtol=0, atol=1e-5)
    assert merged.pop("merged_adapter_rank") == 3
    metadata["model"]["overrides"]["adapter_rank"] = 0
    assert json.loads(json.dumps(metadata)) == merged


def test_what_cannot_be_merged_is_reported_in_one_line(tmp_path):
    save_model(tmp_path / "plain")
    save_model(tmp_path / "run", adapter_rank=3)
    save_params(tmp_path / "nameless", {"x": np.zeros(3, np.float32)}, {})
    reasons = {
        ("plain", "out"): "plain: the network has no adapters to merge",
        ("nameless", "out"): "nameless: the network has no adapters to merge",
        ("run", "plain"): "plain: not empty: choose another directory",
        ("nowhere", "out"): "nowhere: holds no complete checkpoint: check the path",
    }
    for (checkpoint, dst), reason in reasons.items():
        arguments = ["--checkpoint", tmp_path / checkpoint, "--dst", tmp_path / dst]
        with pytest.raises((ValueError, OSError), match=reason) as caught:
            main([str(argument) for argument in arguments])
        assert str(caught.value) == f"{tmp_path}/{reason}"
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Folder of rodents, a checkpoint `base`, a LoRA `run` from it, both `merged`."""
    here = tmp_path_factory.mktemp("lora")
    rodent.generate(here / "rodents", 8, 32, workers=1)
    model, views = get_model("gslrm", "mini"), random_views(1, 2, 32)
    base = jax.jit(model.init)(jax.random.key(1), views)["params"]
    # spreads the points, as training does: at the start all of a view's have nearly the
    # same depth, and rounding would decide the order of most
    base["pixel_head"]["linear"]["kernel"] *= 5
    save_params(here / "base", base, {})
    train(here, "smoke,lora", "run", "--config.run.init_from=base")
    merge = ["--checkpoint", "run", "--dst", "merged"]
    code, out, err = finish(command(*merge, cwd=here, module="convert.merge_lora"))
    assert code == 0, err
    assert out == "merged: adapters of rank 8 from run merged\n"
    return here


def train(here, argument, workdir, *flags):
    flags += ("--config.data.path=rodents", f"--workdir={workdir}")
    config = f"--config={ROOT}/configs/gslrm.py:{argument}"
    code, _, err = finish(command(config, *flags, cwd=here))
    assert code == 0, err
    return err


@pytest.mark.slow
def test_the_base_keeps_every_bit(tuned):
    base, run = (flatten_names(load_params(tuned / n)[0]) for n in ("base", "run"))
    for name, leaf in base.items():
        np.testing.assert_array_equal(run[name], leaf, err_msg=name)
    adapters = run.keys() - base.keys()
    assert len(adapters) == 4 * 4 * 2
    assert all(run[name].any() for name in adapters)


def reconstruct(params, config, scene):
    """Gaussians of a scene and its input views rendered."""
    options = data_options(config["data"], num_held_out_views=1)
    render_fn = make_renderer(options.background, **config["render"])
    refine_fn = make_refiner(options.background, **config["render"])
    step = make_eval_step(build_model(config["model"]), render_fn, refine_fn)
    reconstruction = reconstruct_scene(step, params, scene, options)
    return reconstruction.gaussians, reconstruction.output.colors


@pytest.mark.slow
def test_merged_weights_give_the_same_images(tuned):
    scene = open_source(tuned / "rodents")[7]
    adapted, wanted = reconstruct(*load_params(tuned / "run"), scene)
    params, config = load_params(tuned / "merged")
    merged, colors = reconstruct(params, config, scene)
    for name, expected in vars(adapted).items():
        error = np.abs(getattr(merged, name) - expected).max()
        assert error <= TOLERANCES["gaussians"], name
    error = np.abs(colors - wanted)
    base, _ = load_params(tuned / "base")
    moved = np.abs(reconstruct(base, config, scene)[1] - wanted)
    share = np.mean(error > TOLERANCES["colors"])
    print(f"\nmerged differs from adapted by {error.max():.1e}, {share:.2%} of colors")
    print(f"by more than {TOLERANCES['colors']}; base by {moved.max():.1e}")
    assert share <= TOLERANCES["flipped share"]
    assert error.max() <= TOLERANCES["flipped"] < moved.max() / 100


@pytest.mark.slow
def test_merged_weights_are_taken_like_any_others(tuned):
    log = train(tuned, "smoke", "again", "--config.run.init_from=merged")
    assert "initialized from merged; ignored differences: []" in log
    arguments = ["--checkpoint", "merged", "rodents", "--held-out-views", "2"]
    arguments += ["--turntable-frames", "2"]
    code, _, err = finish(command(*arguments, cwd=tuned, module="evaluate"))
    assert code == 0, err
    assert "6 of 8 scenes were trained on and are left out" in err
    arguments = ["--checkpoint", "merged", "rodents/scene_000007"]
    arguments += ["--filter", "facelift_app", "--layout", "facelift"]
    arguments += ["--turntable-frames", "2"]
    code, _, err = finish(command(*arguments, cwd=tuned, module="reconstruct"))
    assert code == 0, err
    folder = tuned / "reconstruction" / "scene_000007"
    left_out = ply.FILTERS["facelift_app"].describe()
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["left_out_of_ply"] == left_out
    assert f"left out: {left_out})" in err
    assert "scene.ply: layout facelift, " in err
    comments = plyfile.PlyData.read(folder / "scene.ply").comments
    assert any(line.endswith(f"left out: {left_out}") for line in comments)
    assert any(line.startswith("layout facelift: rot") for line in comments)
