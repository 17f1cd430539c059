"""The rules of the house that a program can check."""

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "facelift_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# who -> whom it may import, by first part below the package
LEVEL_0 = {"numerics", "structs", "atomic", "command", "progress"}
LEVEL_1 = LEVEL_0 | {"geometry"}
LEVEL_2 = LEVEL_1 | {"render", "models", "objectives", "data", "training"}
MAY_IMPORT = {
    "__init__": set(),
    "numerics": set(),
    "atomic": set(),
    "command": set(),
    "progress": set(),
    "structs": {"numerics"},
    "training": {"training", "atomic", "progress"},
    "geometry": LEVEL_1,
    "render": LEVEL_1 | {"render"},
    "models": LEVEL_1 | {"models"},
    "objectives": LEVEL_1 | {"objectives"},
    "data": LEVEL_1 | {"data"},
    "export": LEVEL_2,
    "pictures": LEVEL_2,
    "scene_pictures": LEVEL_2,
    "check_data": LEVEL_2 | {"scene_pictures"},
    "judge": LEVEL_2 | {"export"},
    "results": LEVEL_2 | {"export", "pictures"},
    "report": LEVEL_2 | {"results"},
    "evaluate": LEVEL_2 | {"judge", "report", "results"},
    "reconstruct": LEVEL_2 | {"export", "judge", "results", "evaluate"},
    "merge": LEVEL_2,
    "prepare": LEVEL_2,
    "watch": LEVEL_2,
    "curves": LEVEL_2 | {"watch"},
    "step": LEVEL_2 | {"judge"},
    "train": LEVEL_2
    | {"curves", "evaluate", "judge", "report", "results", "step", "watch"},
    "cost": LEVEL_2 | {"evaluate", "train"},
    "main": LEVEL_2 | {"report", "results", "evaluate", "train", "cost"},
    "convert": LEVEL_0 | {"models", "objectives", "training", "convert"},
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LONG_FUNCTIONS_ALLOWED = {"train.py:train"}  # read top to bottom


def module_parts(path):
    return path.relative_to(PACKAGE).with_suffix("").parts


def imported_parts(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert all(alias.name != "*" for alias in node.names), "star import"
            if node.module == "facelift_jax":
                names = [f"facelift_jax.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "facelift_jax" and len(parts) > 1:
                yield parts[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: "/".join(module_parts(p)))
def test_imports_follow_the_table(path):
    tree = ast.parse(path.read_text())
    who = module_parts(path)[0]
    is_command = module_parts(path)[-1] == "__main__"
    allowed = set(MAY_IMPORT) if is_command and who != "convert" else MAY_IMPORT[who]
    forbidden = set(imported_parts(tree)) - allowed
    assert not forbidden, f"{who} must not import {forbidden}"


def test_only_conversion_imports_torch():
    for path in SOURCES:
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "torch" not in names or module_parts(path)[0] == "convert", path


def test_files_and_functions_stay_readable():
    too_long = []
    folders = ("facelift_jax", "configs", "tests", "launch", "benchmarks")
    places = [ROOT / name for name in folders]
    for path in (p for place in places for p in sorted(place.rglob("*.py"))):
        text = path.read_text()
        if len(text.splitlines()) > MAX_FILE_LINES:
            too_long.append(f"{path.name}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                name = f"{path.name}:{node.name}"
                if lines > MAX_FUNCTION_LINES and name not in LONG_FUNCTIONS_ALLOWED:
                    too_long.append(f"{name}: {lines} lines")
    assert not too_long


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: "/".join(module_parts(p)))
def test_modules_say_what_they_are(path):
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"


RECIPES = [
    *(("lgm", x) for x in ("", "lrm", "small", "big", "tiny", "mini", "demo", "smoke")),
    *(("lgm", x) for x in ("lpips", "tiny,lpips", "smoke,lpips")),
    *(("gslrm", x) for x in ("", "facelift", "small", "mini", "demo", "smoke")),
    *(
        ("gslrm", x)
        for x in ("pretrain256", "pretrain512", "finetune,perceptual", "lora")
    ),
]


@pytest.mark.parametrize(("recipe", "argument"), RECIPES)
def test_every_config_builds_its_model(recipe, argument):
    from facelift_jax.models import get_model
    from facelift_jax.objectives import validate_weights

    config = importlib.import_module(f"configs.{recipe}").get_config(argument)
    validate_weights(config.loss.to_dict())
    assert set(config) == {"model", "data", "loss", "optim", "render", "eval", "run"}
    get_model(config.model.name, config.model.variant, **config.model.overrides)


def test_unknown_config_argument_lists_the_known_ones():
    from configs.lgm import get_config

    with pytest.raises(
        ValueError, match="unknown config argument 'bigg'; variants: lrm"
    ):
        get_config("bigg")
    with pytest.raises(ValueError, match="choose one variant, not big and tiny"):
        get_config("big,tiny")
    with pytest.raises(ValueError, match="smoke take the mini variant only"):
        get_config("tiny,smoke")
    from configs import gslrm

    with pytest.raises(ValueError, match="choose one stage, not finetune and pretrain"):
        gslrm.get_config("pretrain256,finetune")
    for argument in ("finetune,demo", "facelift,smoke", "perceptual,demo"):
        with pytest.raises(ValueError, match="take the mini variant only"):
            gslrm.get_config(argument)


@pytest.mark.slow
def test_the_wheel_installs_and_imports_outside_the_tree(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import facelift_jax.render, facelift_jax.models;"
        "import facelift_jax.data.rodent as r;"
        "from importlib.resources import files;"
        "assert files(r).joinpath('rodent.npz').is_file();"
        "import facelift_jax.report as report;"
        "assert report.TEMPLATE.is_file();"
        "print(facelift_jax.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path) in done.stdout


def test_fake_devices_are_there():
    assert len(jax.devices()) == 8
