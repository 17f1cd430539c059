"""The evaluate command, and evaluation in general: refusals, counts, files."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.lgm import get_config
from facelift_jax import evaluate as command_evaluate
from facelift_jax.builders import data_options, make_refiner, make_renderer
from facelift_jax.data import rodent
from facelift_jax.data.mixture import open_checked
from facelift_jax.data.pipeline import evaluation_batches
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.evaluator import evaluate
from facelift_jax.evaluation.results import SIDES, format_number
from facelift_jax.evaluation.steps import make_eval_step, make_hull_step
from facelift_jax.io import command
from facelift_jax.reconstruction import NUM_STEPS, refine
from facelift_jax.render import RenderConfig, render
from facelift_jax.structs import Gaussians


def test_dropped_entries_end_an_evaluation(tmp_path):
    rodent.generate(tmp_path / "data", 1, 16, workers=1)
    source = open_source(tmp_path / "data")
    options = data_options({"input_size": 16, "target_size": 16}, 1)
    capped = functools.partial(
        render,
        background=np.ones(3, np.float32),
        config=RenderConfig(max_entries=16),
    )
    hull_step = make_hull_step(capped, make_refiner(options.background))
    with pytest.raises(
        ValueError,
        match=r"scene scene_000000: the renderer dropped \d+ list entries, so its",
    ):
        evaluate(hull_step, None, source, options)


def repeat_a_view(scene):
    """Makes a scene fail the data checks: two views have the same image."""
    images = sorted((scene / "images").iterdir())
    shutil.copy(images[6], images[7])


@pytest.mark.filterwarnings("ignore:the load_module")  # by the default of a flag
def test_a_run_counts_the_held_out_scenes_that_fail_the_data_checks(
    tmp_path, monkeypatch, capsys
):
    """In every process; only the first one logs and writes."""
    rodent.generate(tmp_path / "data", 4, 24, workers=1, views=3)
    for name in ("scene_000001", "scene_000003"):
        repeat_a_view(tmp_path / "data" / name)
    config = get_config("smoke")
    config.data.update(path=str(tmp_path / "data"), num_held_out_scenes=2)
    config.data.violations_allowed = 2
    options = data_options(config.data, config.eval.num_targets)
    (tmp_path / "run").mkdir()
    for process in (1, 0):
        assert not list(tmp_path.rglob("data_checks.json"))
        assert "the results are stored with the data set" not in capsys.readouterr().err
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        train_on, held_out = open_checked(config.data, options, tmp_path / "run")
        assert (len(train_on), len(held_out), held_out.violations) == (2, 2, 1)
    assert len(list(tmp_path.rglob("data_checks.json"))) == 2
    assert "the results are stored with the data set" in capsys.readouterr().err


@pytest.mark.slow
def test_the_hull_is_evaluated_without_a_network(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(command, "log_own_lines", lambda: None)
    rodent.generate(tmp_path / "data", 2, 24, workers=1, views=3)
    repeat_a_view(tmp_path / "data" / "scene_000001")
    arguments = [str(tmp_path / "data"), "--out", str(tmp_path / "hull")]
    with pytest.raises(ValueError, match="give --checkpoint, or --baseline hull for "):
        command_evaluate.main(arguments)
    arguments += ["--baseline", "hull", "--inputs", "5"]
    command_evaluate.main([*arguments, "--turntable-frames", "4"])
    (warning,) = [x.getMessage() for x in caplog.records if x.levelname == "WARNING"]
    assert warning.startswith(
        f"evaluated anyway: {tmp_path}/data: 1 of 2 scenes fail the data "
        "checks; first: scene scene_000001: views 6 and 7 have the same image"
    )
    assert warning.endswith(f"python -m facelift_jax.check_data {tmp_path}/data")
    written = json.loads((tmp_path / "hull" / "metrics.json").read_text())
    assert written["violations"] == 1
    metrics = written["metrics"]
    assert metrics["held_out/iou"] > 0.5
    assert written["hull"]["metrics"] == metrics
    low, high = written["intervals"]["held_out/iou"]
    assert low <= metrics["held_out/iou"] <= high
    assert written["counts"]["surface/chamfer"] == 2
    assert metrics["turntable/p6"] is None  # too few frames
    assert sum(x["num_views"] for x in written["by_angle"]) == 2 * 4  # one input less
    means = [np.mean(scene["psnr_fg"]) for scene in written["scenes"]]
    assert metrics["held_out/psnr_fg"] == pytest.approx(np.mean(means))
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if "held-out views  95 %" in line)
    assert lines[header - 1].split() == ["hull,", "refined"]  # not the hull itself
    refined = written["hull_refined"]["metrics"]
    for name in ("iou", "psnr_box"):
        row = next(line.split() for line in lines if line.startswith(name))
        means = [values[f"{x}/{name}"] for x in SIDES for values in (metrics, refined)]
        assert [row[1], row[-2], row[2], row[-1]] == [format_number(x) for x in means]
    files = {path.name for path in (tmp_path / "hull").iterdir()}
    wanted = "metrics.json images report.html scene.ply turntable.mp4"
    assert files == {*wanted.split()}
    command_evaluate.main(
        [*arguments, "--turntable-frames", "4", "--refine", "--out", f"{tmp_path}/2"]
    )
    direct = json.loads((tmp_path / "2" / "metrics.json").read_text())
    assert direct["hull_refined"]["metrics"] == direct["metrics"]
    for baseline, itself in ((refined, direct["metrics"]), (direct["hull"], metrics)):
        baseline = baseline.get("metrics", baseline)
        # properties of the true object
        only = {name for name in itself if name.startswith("true_turntable/")}
        assert itself.keys() - baseline.keys() == only
        assert baseline == {name: itself[name] for name in baseline}
    assert capsys.readouterr().out.splitlines()[0].strip() == "hull"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--refine", "-2"], "--refine: -2: must be at least 0"),
        (
            ["--refine", "data"],
            "--refine: 'data' is not an integer; give DATA before the flags",
        ),
        (["--turntable-frames", "0"], "--turntable-frames: 0: must be at least 1"),
    ],
)
def test_bad_numbers_are_refused(arguments, line, capsys):
    with pytest.raises(SystemExit) as ending:
        command_evaluate.main(["--baseline", "hull", *arguments])
    assert ending.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"evaluate: argument {line}; see --help"


@pytest.mark.parametrize(
    ("arguments", "num_steps"),
    [
        ([], 0),
        (["--refine", "0"], 0),
        (["--refine"], NUM_STEPS),
        (["--refine", "7"], 7),
    ],
)
def test_without_steps_there_is_no_refinement(arguments, num_steps):
    flags = command_evaluate.parse(["data", "--baseline", "hull", *arguments])
    assert flags.refine == num_steps


def test_refinement_needs_a_checkpoint_or_a_baseline(monkeypatch):
    monkeypatch.setattr(command, "log_own_lines", lambda: None)
    with pytest.raises(ValueError, match="give --checkpoint, or --baseline hull for "):
        command_evaluate.main(["data", "--refine"])


class OneGaussian:
    """A network without parameters: one Gaussian per input view."""

    def apply(self, variables, inputs):
        del variables
        shape = inputs.images.shape[:2]
        gaussians = Gaussians(
            jnp.zeros((*shape, 3)),
            jnp.broadcast_to(jnp.array([1.0, 0, 0, 0]), (*shape, 4)),
            jnp.full((*shape, 3), 0.3),
            jnp.full(shape, 0.5),
            jnp.zeros((*shape, 1, 3)),
        )
        return gaussians, None

    def source_views(self, num_views, size):
        del size
        return jnp.arange(num_views)


def test_the_gaussians_of_a_network_are_refined_before_they_are_evaluated(tmp_path):
    rodent.generate(tmp_path / "data", 1, 16, workers=1)
    source = open_source(tmp_path / "data")
    options = data_options({"input_size": 16, "target_size": 16}, 1)
    batch = next(iter(evaluation_batches(source, options, batch_size=1)))
    model, white = OneGaussian(), options.background
    refiner = make_refiner(white, backend="xla")
    step = make_eval_step(model, make_renderer(white), refiner, 2)
    gaussians, outputs = step({}, batch)
    before, _ = model.apply({}, batch.inputs)
    expected = refine(before, batch.inputs, np.float32(white), 2)
    assert not np.allclose(before.scales, expected.scales, atol=1e-3)
    for value, other in zip(*map(jax.tree.leaves, (gaussians, expected)), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=1e-5)
    rendered = make_renderer(white)(expected, batch.targets.cameras)
    np.testing.assert_allclose(outputs.output.colors, rendered.colors, atol=1e-4)
    assert {"own_view_share", "lovo_drop"} <= outputs.own_view_metrics.keys()
