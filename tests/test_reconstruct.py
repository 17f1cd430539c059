"""The reconstruct command: starts, settings, files, warnings and complete folders."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from optional_packages import HIDE
from PIL import Image

from facelift_jax import reconstruct
from facelift_jax.builders import restore
from facelift_jax.checkpoints.checkpoint import save_params
from facelift_jax.convert import rule_table
from facelift_jax.data import rodent
from facelift_jax.data import scenes as data_scenes
from facelift_jax.data.scenes import open_source
from facelift_jax.evaluation.steps import make_eval_step, make_hull_step
from facelift_jax.export.ply import read_ply
from facelift_jax.geometry.paths import dummy_views
from facelift_jax.metrics import (
    HEALTH_DEFINITIONS,
    OWN_VIEW_DEFINITIONS,
    TURNTABLE_DEFINITIONS,
)
from facelift_jax.models import get_model
from facelift_jax.reconstruction import refine, refine_hull
from facelift_jax.render import RenderConfig, render

ROOT = Path(__file__).parent.parent
SIZES = {"width": 32, "depth": 1, "head_dim": 16}
MODEL = {"name": "gslrm", "variant": "mini", "dtype": "float32", "overrides": SIZES}
DATA = {"input_size": 16, "target_size": 16, "radius": 2.7, "frame": "world"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rodents"
    rodent.generate(path, 2, 16, workers=1)
    return [path / f"scene_{i:06d}" for i in range(2)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(run of a small GS-LRM with small images, the same as converted weights)."""
    model = get_model("gslrm", "mini", **SIZES)
    params = model.init(jax.random.key(0), dummy_views(1, 2, 16))["params"]
    root = tmp_path_factory.mktemp("weights")
    save_params(root / "run", params, {"model": MODEL, "data": DATA})
    converted = {"model": MODEL, "data": rule_table("gslrm").DATA}
    save_params(root / "converted", params, converted)
    return root / "run", root / "converted"


def test_converted_weights_use_the_data_options_of_their_training(weights):
    """FaceLift: cameras 2.7 from the origin, in a world that keeps its axes."""
    options = restore(str(weights[1]), 3).options
    assert (options.radius, options.frame) == (2.7, "world")
    assert (options.input_size, options.target_size) == (512, 512)
    assert (options.num_inputs, options.eval_targets) == (6, 3)
    assert options.background == (1.0, 1.0, 1.0)
    options = restore(str(weights[0]), 3, num_inputs=4).options
    assert (options.input_size, options.num_inputs) == (16, 4)


def test_a_checkpoint_without_a_network_is_refused(tmp_path):
    save_params(tmp_path / "w", {"a": np.zeros(1, np.float32)}, {})
    with pytest.raises(ValueError, match="the metadata names no network: give"):
        restore(str(tmp_path / "w"), 1)


def test_a_scene_is_reconstructed_in_the_world_of_its_rig(weights, scenes, monkeypatch):
    decoded, decode_image = [], data_scenes.decode_image

    def count(path, *arguments):
        decoded.append(path)
        return decode_image(path, *arguments)

    monkeypatch.setattr(data_scenes, "decode_image", count)
    restored = restore(str(weights[0]), 1, num_inputs=4)
    step = make_eval_step(restored.model, restored.render_fn, restored.refine_fn)
    scene = open_source(scenes[0])[0]
    result = reconstruct.reconstruct_scene(
        step, restored.params, scene, restored.options
    )
    assert len(decoded) == len(set(decoded)) == 2 * 4  # images and depth maps, once
    assert result.metrics["num_gaussians"] == 2 + 4 * 16 * 16
    assert result.metrics["share_opaque"] == 1  # about 0.12 at the start
    assert result.output.colors.shape == (1, 4, 16, 16, 3)
    distances = np.linalg.norm(result.batch.inputs.cameras.centers[0], axis=-1)
    np.testing.assert_allclose(distances, 2.7, rtol=1e-3)
    assert result.view_metrics["psnr_fg"].shape == (1, 4)
    np.testing.assert_allclose(
        result.metrics["inputs/psnr_fg"],
        result.view_metrics["psnr_fg"].mean(),
        rtol=1e-6,
    )


def test_a_complete_scene_is_kept_and_other_folders_are_refused(
    weights, scenes, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = [str(scenes[0]), "--checkpoint", str(weights[0]), "--out", str(out)]
    arguments += ["--turntable-frames", "2"]
    reconstruct.main(arguments)
    folder = out / "scene_000000"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["made_by"]["filter"] == "opacity"
    assert metrics["made_by"]["data.num_inputs"] == 6
    names = [f"inputs/{name}" for name in OWN_VIEW_DEFINITIONS]
    names += [f"health/{name}" for name in HEALTH_DEFINITIONS]
    names += [f"turntable/{name}" for name in TURNTABLE_DEFINITIONS]
    assert {*names} <= metrics.keys()
    printed = capsys.readouterr().out
    assert all(f"{name.split('/')[1]} " in printed for name in names)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    reconstruct.main(arguments)
    assert "scene_000000: already complete in" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after == before
    for flags, changed in (
        (["--filter", "facelift", "--turntable-frames", "3"], "filter, turntable_fram"),
        (["--inputs", "4"], "data.num_inputs"),
    ):
        with pytest.raises(ValueError, match=f"but made with different {changed}"):
            reconstruct.main([*arguments, *flags])

    moved = tmp_path / "moved" / "scene_000000"
    shutil.copytree(scenes[0], moved)
    config = {"model": MODEL, "data": DATA | {"min_held_out": 0, "max_angle": 90.0}}
    params = restore(str(weights[0]), 1).params
    save_params(tmp_path / "same", params, config)
    same = [str(moved), "--checkpoint", str(tmp_path / "same"), *arguments[3:]]
    reconstruct.main(same)
    assert "scene_000000: already complete in" in capsys.readouterr().out
    shutil.copy(moved / "images" / "cam_001.png", moved / "images" / "cam_000.png")
    with pytest.raises(ValueError, match="complete, but made with different files;"):
        reconstruct.main(same)

    (folder / "metrics.json").unlink()  # as after an interrupted run
    assert not reconstruct.is_complete(folder, "scene_000000", {})
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds notes\.txt, which is not a file"):
        reconstruct.main(arguments)
    into_data = [*arguments, "--out", str(scenes[0].parent)]
    with pytest.raises(ValueError, match=r"scene_000000: holds depths, which is not"):
        reconstruct.main(into_data)


@pytest.mark.slow
@pytest.mark.parametrize("start", reconstruct.STARTS)
def test_a_base_installation_reconstructs(weights, scenes, tmp_path, start):
    """Without the packages of any extra."""
    arguments = [str(scenes[0]), "--start", start, "--inputs", "2", "--refine", "1"]
    arguments += ["--turntable-frames", "2", "--out", str(tmp_path)]
    arguments += ["--checkpoint", str(weights[0])] if start == "network" else []
    script = f"from facelift_jax import reconstruct\nreconstruct.main({arguments})"
    done = subprocess.run(
        [sys.executable, "-c", HIDE + script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "scene_000000").iterdir()}
    assert {"metrics.json", "scene.ply", "turntable.mp4"} < names


def test_the_digest_changes_with_any_weight():
    params = {"a": np.zeros(2, np.float32), "b": np.ones((2, 3), np.float32)}
    same = jax.tree.map(np.copy, params)
    assert reconstruct.digest(same) == reconstruct.digest(params)
    same["b"][1, 2] += 1
    assert reconstruct.digest(same) != reconstruct.digest(params)


def test_bad_arguments_are_refused_before_any_output(weights, scenes, tmp_path, capsys):
    out = tmp_path / "out"
    data = DATA | {"frame": "first_camera"}
    params = restore(str(weights[0]), 1).params
    save_params(tmp_path / "y_up", params, {"model": MODEL, "data": data})
    flags = ["--checkpoint", str(tmp_path / "y_up"), "--filter", "facelift"]
    with pytest.raises(ValueError, match="--filter facelift: needs a world whose z"):
        reconstruct.main([*flags, "--out", str(out), str(scenes[0])])
    arguments = ["--checkpoint", str(weights[0]), "--out", str(out), str(scenes[0])]
    with pytest.raises(ValueError, match="two scenes are named scene_000000; give"):
        reconstruct.main([*arguments, str(scenes[1]), str(scenes[0])])
    minima = (("--turntable-frames", 0, 1), ("--refine", -1, 0), ("--inputs", 0, 1))
    for flag, value, minimum in minima:
        with pytest.raises(SystemExit):
            reconstruct.main([*arguments, flag, str(value)])
        line = f"argument {flag}: {value}: must be at least {minimum}; see --help"
        assert line in capsys.readouterr().err
    with pytest.raises(ValueError, match="6 views marked as inputs, but num_inputs=9"):
        reconstruct.main([*arguments, "--inputs", "9"])
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object; remove the file"),
        (
            '{"made_by": 3}',
            "complete, but made with different weights; choose another",
        ),
    ],
)
def test_a_damaged_metrics_file_is_reported_in_one_line(tmp_path, text, line):
    (tmp_path / reconstruct.METRICS_FILE).write_text(text)
    with pytest.raises(ValueError, match=line) as caught:
        reconstruct.is_complete(tmp_path, "scene", {"weights": "1"})
    assert str(tmp_path) in str(caught.value)


def copied(scene, to):
    shutil.copytree(scene, to)
    return to


def hull_flags(scene, out, steps=0):
    flags = [str(scene), "--out", str(out), "--refine", str(steps)]
    return [*flags, "--turntable-frames", "2"]


def written(out, name="scene_000000"):
    return json.loads((out / name / "metrics.json").read_text())


def test_a_scene_is_reconstructed_without_a_checkpoint(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = hull_flags(scenes[0], out, 2)
    reconstruct.main(arguments)
    metrics, printed = written(out), capsys.readouterr().out
    made_by = metrics["made_by"]
    assert (made_by["start"], made_by["refine"]) == ("hull", 2)
    assert "weights" not in made_by
    assert made_by["data.frame"] == "world"
    assert (made_by["data.num_inputs"], made_by["data.input_size"]) == (6, 16)
    assert metrics["warnings"] == []
    assert "WARNING" not in printed
    assert "own_view" not in printed
    gaussians = read_ply(out / "scene_000000" / "scene.ply")
    assert metrics["num_gaussians"] == len(gaussians.means)  # without padding
    assert metrics["share_opaque"] == 1
    assert metrics["inputs/iou"] > 0.6  # few Gaussians at 16 px
    reconstruct.main(arguments)
    assert "scene_000000: already complete in" in capsys.readouterr().out
    with pytest.raises(ValueError, match="complete, but made with different refine;"):
        reconstruct.main(hull_flags(scenes[0], out))


def test_refinement_starts_from_hull_or_network(weights, scenes, tmp_path):
    """`--start hull` with a checkpoint: the hull of the network's input images."""
    base = ["--checkpoint", str(weights[0]), "--inputs", "3"]
    results = {}
    for start, steps in (("hull", 0), ("network", 0), ("network", 2)):
        out = tmp_path / f"{start}{steps}"
        flags = [*hull_flags(scenes[0], out, steps), *base, "--start", start]
        reconstruct.main(flags)
        made_by = written(out)["made_by"]
        assert ("weights" in made_by) == (start == "network")
        assert made_by["data.radius"] == 2.7
        results[start, steps] = read_ply(out / "scene_000000" / "scene.ply")
    unrefined, refined = results["network", 0], results["network", 2]
    assert unrefined.means.shape == refined.means.shape
    assert 0 < np.abs(unrefined.means - refined.means).max() < 0.5
    assert len(results["hull", 0].means) < len(unrefined.means)


def test_the_render_section_of_a_checkpoint_reaches_its_refined_hull(
    weights, scenes, tmp_path
):
    params = restore(str(weights[0]), 1).params
    config = {"model": MODEL, "data": DATA, "render": {"antialiased": True}}
    save_params(tmp_path / "run", params, config)
    restored = restore(str(tmp_path / "run"), 1)
    scene = open_source(scenes[0])[0]
    step = make_hull_step(restored.render_fn, restored.refine_fn, 2)
    result = reconstruct.reconstruct_scene(step, None, scene, restored.options)
    example = jax.tree.map(lambda x: x[0], result.batch.inputs)
    white, antialiased = np.ones(3, np.float32), RenderConfig(antialiased=True)
    direct, other = (
        refine_hull(example, functools.partial(refine, background=white, config=x), 2)
        for x in (antialiased, None)
    )
    jax.tree.map(np.testing.assert_array_equal, result.gaussians, direct)
    assert np.abs(direct.opacities - other.opacities).max() > 1e-3
    drawn = render(result.gaussians, example.cameras, white, config=antialiased)
    np.testing.assert_allclose(result.output.colors[0], drawn.colors, atol=1e-4)

    out = tmp_path / "out"
    flags = [*hull_flags(scenes[0], out, 2), "--start", "hull", "--checkpoint"]
    reconstruct.main([*flags, str(tmp_path / "run")])
    written = read_ply(out / "scene_000000" / "scene.ply")
    assert np.isin(written.means, direct.means).all()
    with pytest.raises(ValueError, match=r"made with different render\.antialiased;"):
        reconstruct.main([*flags, str(weights[0])])


def test_wrong_cameras_are_reported_with_the_view(scenes, tmp_path, capsys):
    rodent.generate(tmp_path / "data", 1, 32, workers=1, views=0)
    scene = tmp_path / "data" / "scene_000000"
    image = Image.open(scene / "images" / "cam_003.png")
    image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        scene / "images" / "cam_003.png"
    )
    out = tmp_path / "out"
    reconstruct.main(hull_flags(scene, out))
    (line,) = written(out)["warnings"]
    assert line.startswith("cameras and masks disagree: only ")
    assert line.endswith("the image of view 3 is mirrored: mirror it back")
    assert f"scene_000000: WARNING: {line}" in capsys.readouterr().out


def test_few_views_and_cut_off_objects_are_reported(scenes, tmp_path, capsys):
    out = tmp_path / "out"
    reconstruct.main([*hull_flags(scenes[0], out), "--inputs", "3"])
    few, numbers = written(out)["warnings"]
    assert few.startswith("only 3 input views: a visual hull of so few masks is much")
    assert numbers == "the input views are views 0, 2, 4 of the scene"
    assert f"WARNING: {few}" in capsys.readouterr().out

    scene = copied(scenes[0], tmp_path / "cut" / "scene_000000")
    document = json.loads((scene / "opencv_cameras.json").read_text())
    for view in (1, 4):  # crop the left half of the object away
        frame = document["frames"][view]
        path = scene / frame["file_path"]
        image = np.array(Image.open(path))
        left = int(np.argwhere(image[..., 3] > 127)[:, 1].mean())
        image = np.pad(image[:, left:], ((0, 0), (0, left), (0, 0)))
        Image.fromarray(image).save(path)
        frame["cx"] -= left
    (scene / "opencv_cameras.json").write_text(json.dumps(document))
    reconstruct.main(hull_flags(scene, tmp_path / "cut_out"))
    (line,) = written(tmp_path / "cut_out")["warnings"]
    assert "cuts off the object in input views 1, 4: its shape outside" in line


def change_masks(scene, change):
    for path in sorted((scene / "images").glob("*.png")):
        image = np.array(Image.open(path))
        image[..., 3] = change(image[..., 3], path.stem)
        Image.fromarray(image).save(path)


def test_masks_that_define_no_hull_are_refused(scenes, tmp_path):
    """In one line that names the scene; nothing is written."""
    out = tmp_path / "out"
    opaque = copied(scenes[0], tmp_path / "opaque")
    change_masks(opaque, lambda mask, _: np.full_like(mask, 255))
    with pytest.raises(ValueError, match="alpha channel opaque") as caught:
        reconstruct.main(hull_flags(opaque, out))
    assert f"scene opaque ({opaque}): the masks of 6 of 6 input" in str(caught.value)

    apart = copied(scenes[0], tmp_path / "apart")

    def in_a_corner(mask, name):
        corner = np.zeros_like(mask)
        corner[2:4, 2:4] = 255
        return corner if int(name[-1]) % 2 else corner[::-1, ::-1]

    change_masks(apart, in_a_corner)
    with pytest.raises(ValueError, match="share no volume") as caught:
        reconstruct.main(hull_flags(apart, out, 3))
    assert "scene apart" in str(caught.value)
    assert "python -m facelift_jax.check_data" in str(caught.value)

    rgb = copied(scenes[0], tmp_path / "rgb")
    for path in (rgb / "images").glob("*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(ValueError, match='RGB image without a "mask_path": add one'):
        reconstruct.main(hull_flags(rgb, out))
    assert not out.exists()


def test_bad_starts_are_refused(weights, scenes, tmp_path):
    arguments = [str(scenes[0]), "--out", str(tmp_path / "out")]
    for flags, line in (
        (["--start", "network"], "--start network: needs the weights of a network;"),
        (["--inputs", "1"], "scene_000000: there is only 1 input view; a hull and"),
    ):
        with pytest.raises(ValueError, match=line):
            reconstruct.main([*arguments, *flags])
    flags = ["--checkpoint", str(weights[0]), "--refine", "1", "--inputs", "1"]
    with pytest.raises(ValueError, match="there is only 1 input view; a hull and its"):
        reconstruct.main([*arguments, *flags])
    assert not (tmp_path / "out").exists()
