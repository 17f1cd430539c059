"""Commands, flags and snippets in the documents are those of the program."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import networks, refine, refine_choices, render, synthetic_failures
from configs import gslrm
from configs.lgm import get_config
from facelift_jax import check_data, evaluate, metrics, prepare, reconstruct, view
from facelift_jax.builders import build_model
from facelift_jax.convert import __main__ as convert
from facelift_jax.convert import merge_lora
from facelift_jax.data import pack, rodent
from facelift_jax.data.rodent import __main__ as rodent_command
from facelift_jax.export.ply import write_ply
from facelift_jax.losses import term_weights, validate_weights
from facelift_jax.render import __main__ as render_command
from facelift_jax.structs import Gaussians

ROOT = Path(__file__).parent.parent
DOCUMENTS = [  # facelift_jax/__main__.py, the list of commands, has its own test
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "configs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
    *sorted((ROOT / "configs").glob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "facelift_jax").rglob("[!_]*.py")),
    *sorted((ROOT / "facelift_jax").glob("*/**/__main__.py")),
    *sorted((ROOT / "facelift_jax").rglob("*.md")),
]
FLAGS = ("config", "workdir", "mode")  # of facelift_jax.main
RECIPES = {"lgm.py": get_config, "gslrm.py": gslrm.get_config}
COMMANDS = {
    "facelift_jax.check_data": check_data.main,
    "facelift_jax.evaluate": evaluate.main,
    "facelift_jax.convert": convert.main,
    "facelift_jax.convert.merge_lora": merge_lora.main,
    "facelift_jax.prepare": prepare.main,
    "facelift_jax.reconstruct": reconstruct.main,
    "facelift_jax.render": render_command.main,
    "facelift_jax.view": view.main,
    "facelift_jax.data.pack": pack.main,
    "facelift_jax.data.rodent": rodent_command.main,
    "benchmarks.render": render.main,
    "benchmarks.networks": networks.main,
    "benchmarks.refine": refine.main,
    "benchmarks.refine_choices": refine_choices.main,
    "benchmarks.synthetic_failures": synthetic_failures.main,
}


def documented():
    """(document, words) of every `python -m` and `bash launch/` line."""
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")  # a command over two lines
        for line in re.findall(r"(?:python -m|bash launch/)[^\n`;,|\")]+", text):
            words = shlex.split(re.sub(r"\s+[#(].*|\[.*?\]", "", line))
            yield path.relative_to(ROOT), words


def of_module(name):
    commands = [
        (path, words[3:])
        for path, words in documented()
        if words[2:3] == [name] and words[3:]
    ]
    assert commands, name
    return commands


def test_every_documented_command_exists():
    modules = {
        *COMMANDS,
        "facelift_jax",
        "facelift_jax.main",
        "benchmarks.gsplat_baseline",
        "pytest",
    }
    for path, words in documented():
        if words[0] == "bash":
            assert (ROOT / words[1]).is_file(), (path, words)
        else:
            assert words[2] in modules, (path, words)


@pytest.mark.parametrize("name", COMMANDS)
def test_documented_arguments_parse(name, monkeypatch):
    """The command's own parser takes them; it stops before anything is done."""

    class ParsedError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments):
        raise ParsedError(parse(self, *arguments))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    for _, arguments in of_module(name):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(ParsedError):
            COMMANDS[name](arguments)


def test_documented_flags_of_main_are_flags_of_its_config():
    for path, arguments in of_module("facelift_jax.main"):
        named = re.findall(r"--(\w+)=?([\w.:/,]*)", " ".join(arguments))
        config = get_config()
        for name, value in named:
            assert name in FLAGS, (path, arguments)
            if name == "config" and value.startswith("."):
                section, field = value[1:].split(".")
                assert field in config[section], (path, arguments)
        for file, argument in re.findall(
            r"configs/(\w+\.py):?([\w,]*)", str(arguments)
        ):
            RECIPES[file](argument)


def test_flags_of_schedules_and_of_overrides():
    """In `configs/README.md`; a schedule may become a number, not the other way."""

    def parse(*arguments: str):
        values, config = flags.FlagValues(), gslrm.get_config()
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=arguments
        )
        values(["main", *arguments])
        return config

    text = (ROOT / "configs/README.md").read_text()
    inline = re.findall(r"`(--config\.\S+=[^`]+)`", text)
    assert len(inline) == 3
    config = parse(*(" ".join(shlex.split(flag)) for flag in inline))
    assert config.loss.rgb_mse == (1.0,)
    validate_weights(term_weights(config.loss))
    assert build_model(config.model).remat
    config = parse("--config.loss.points_distance=(0.2, 3, 9)")
    assert config.loss.points_distance == (0.2, 3, 9)
    with pytest.raises(flags.IllegalFlagValueError, match="could not convert string"):
        parse("--config.loss.ssim=(0.5, 30)")


def test_the_table_of_fields_is_the_config():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*) \|$", (ROOT / "configs/README.md").read_text(), re.M
    )
    config = get_config().to_dict()
    assert sorted(name for name, _ in rows) == sorted(config)
    for name, text in rows:
        outside_brackets = re.sub(r"\([^()]*\)", "", text)
        assert set(re.findall(r"`(\w+)`", outside_brackets)) == set(config[name]), name


def test_help_names_every_flag():
    done = subprocess.run(
        [sys.executable, "-m", "facelift_jax.main", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    assert set(re.findall(r"^  --(\w+)", done.stdout, re.M)) == set(FLAGS)
    assert "configs/README.md lists them" in " ".join(done.stdout.split())


def python_snippets():
    """(document, code) of every Python block in the README and the pages."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for number, code in enumerate(
            re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S)
        ):
            yield pytest.param(code, id=f"{path.stem}-{number}")


@pytest.mark.parametrize("code", list(python_snippets()))
def test_python_snippets_run_as_pasted(code, capsys):
    exec(compile(code, "snippet", "exec"), {})
    assert capsys.readouterr().out.strip(), "a snippet shows its result"


def test_every_metric_is_defined_in_the_pages():
    page = (ROOT / "docs/evaluation.md").read_text()
    tables = (
        metrics.DEFINITIONS,
        metrics.OWN_VIEW_DEFINITIONS,
        metrics.HEALTH_DEFINITIONS,
        metrics.TURNTABLE_DEFINITIONS,
        metrics.SURFACE_DEFINITIONS,
    )
    missing = [name for table in tables for name in table if f"`{name}`" not in page]
    assert not missing


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), (path, target)


def test_a_turntable_of_a_ply_file(tmp_path):
    rng = np.random.default_rng(0)
    gaussians = Gaussians(
        means=rng.normal(0, 0.2, (30, 3)).astype(np.float32),
        quats=rng.normal(size=(30, 4)).astype(np.float32),
        scales=np.full((30, 3), 0.05, np.float32),
        opacities=np.full(30, 0.9, np.float32),
        sh=np.zeros((30, 1, 3), np.float32),
    )
    write_ply(tmp_path / "scene.ply", gaussians)
    arguments = [tmp_path / "scene.ply", tmp_path / "turntable.mp4"]
    example = [sys.executable, ROOT / "examples/render_ply.py", *arguments]
    sizes = ["--size", "32", "--frames", "3"]
    done = subprocess.run(
        [*example, *sizes],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3 frames of 30 Gaussians" in done.stdout
    assert (tmp_path / "turntable.mp4").stat().st_size > 500


@pytest.mark.slow
def test_training_on_scenes_of_ones_own(tmp_path):
    rodent.generate(tmp_path / "data", 6, 32, workers=1)
    example = [sys.executable, ROOT / "examples/train_on_your_scenes.py"]
    arguments = [tmp_path / "data", tmp_path / "run", "--recipe", "smoke"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*example, *arguments, "--held-out", "2", "--steps", "4"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "psnr_fg" in done.stdout
    assert (tmp_path / "run" / "complete.json").is_file()
