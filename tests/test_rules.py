"""Rules for the package as a whole: imports, commands, configs, the wheel."""

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest
from optional_packages import PACKAGES

from facelift_jax.__main__ import COMMANDS
from facelift_jax.__main__ import main as list_commands

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "facelift_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# What a folder may import besides itself. An entry for a single module replaces that
# of its folder.
MAY_IMPORT = {
    "geometry": {"structs"},
    "geometry.numerics": set(),
    "geometry.rotations": {"geometry.numerics"},
    "structs": {"geometry.numerics", "geometry.rotations"},
    "io": set(),
    "__main__": {"io"},
    "export": {"structs", "geometry", "io"},
    "render": {"structs", "geometry"},
    "render.__main__": {"structs", "geometry", "io", "export", "data", "render"},
    "models": {"structs", "geometry"},
    "metrics": {"structs", "geometry"},
    "losses": {"structs", "geometry", "metrics"},
    "data": {"structs", "geometry", "io"},
    "checkpoints": {"io"},
    "convert": {"structs", "io", "checkpoints", "losses", "models"},
    "builders": {
        *("structs", "checkpoints", "data", "models", "render", "reconstruction"),
        "training.optim",
    },
    "reconstruction": {"structs", "geometry", "render"},
    "evaluation": {
        *("structs", "geometry", "io", "export", "render", "metrics", "data"),
        "reconstruction",
    },
    "training": {
        *("structs", "geometry", "io", "metrics", "losses", "data", "checkpoints"),
        *("builders", "evaluation"),
    },
    "training.optim": {"checkpoints"},
    "prepare": {"io", "data"},
    "check_data": {"io", "data"},
    "evaluate": {"io", "data", "metrics", "builders", "evaluation", "reconstruction"},
    "view": {"geometry", "io", "export"},
    "reconstruct": {
        *("structs", "io", "data", "metrics", "builders", "evaluation", "export"),
        "reconstruction",
    },
    "main": {
        *("io", "data", "metrics", "losses", "checkpoints", "builders"),
        *("evaluation", "training"),
    },
}


def module_name(path):
    """Dotted name below the package; for an `__init__.py` that of its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree):
    """Modules of the package that a syntax tree imports, as names below the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            assert all(alias.name != "*" for alias in node.names), "star import"
            names = [node.module]
            if not (PACKAGE.parent / f"{node.module.replace('.', '/')}.py").is_file():
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("facelift_jax."):
                yield name.removeprefix("facelift_jax.")


def is_within(module, parent):
    return module == parent or module.startswith(f"{parent}.")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_follow_the_table(path):
    module = module_name(path)
    imported = list(imported_modules(ast.parse(path.read_text())))
    if not module:
        assert not imported
        return
    entry = max((x for x in MAY_IMPORT if is_within(module, x)), key=len)
    allowed = {entry.split(".")[0]} if "." not in entry else set()
    allowed |= MAY_IMPORT[entry]
    forbidden = {x for x in imported if not any(is_within(x, y) for y in allowed)}
    assert not forbidden, f"{module} must not import {forbidden}"


def test_the_top_of_the_package_holds_commands_and_packages_only():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    commands = {name for name in COMMANDS if "." not in name}
    commands = {name for name in commands if (PACKAGE / f"{name}.py").is_file()}
    assert modules == commands | {"__init__", "__main__", "structs", "builders"}


def test_every_command_is_listed(capsys):
    commands = {
        module_name(path).removesuffix(".__main__")
        for path in SOURCES
        if '__name__ == "__main__"' in path.read_text()
    }
    assert commands - {"__main__"} == set(COMMANDS)
    list_commands([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(COMMANDS) + 1
    assert all(len(line) <= 110 for line in lines)


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"main"}))
def test_every_command_has_help(name, capsys):
    """That of `main`, whose flags are global, is tested in test_documents.py."""
    is_package = (PACKAGE / name.replace(".", "/")).is_dir()
    suffix = ".__main__" if is_package else ""
    module = importlib.import_module(f"facelift_jax.{name}{suffix}")
    with pytest.raises(SystemExit) as ending:
        module.main(["--help"])
    assert ending.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m facelift_jax.{name} ")


LIGHT_IMPORTS = """
import sys
for name in ("facelift_jax.__main__", "facelift_jax.render", "facelift_jax.models"):
    __import__(name)
    print(name, *sorted({module.split(".")[0] for module in sys.modules}))
"""


def test_imports_load_no_optional_and_no_slow_packages():
    """Listing the commands needs no JAX; rendering and networks need no data tools."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT_IMPORTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    optional = {*PACKAGES, "h5py", "torch"}
    slow = {"orbax", "cv2", "av", "PIL", "plyfile", "safetensors", "scipy"}
    lines = [line.split() for line in done.stdout.splitlines()]
    loaded = {name: set(modules) for name, *modules in lines}
    assert not loaded["facelift_jax.__main__"] & (optional | slow | {"jax", "numpy"})
    assert not loaded["facelift_jax.render"] & (optional | slow | {"flax"})
    assert not loaded["facelift_jax.models"] & (optional | slow - {"orbax"})


def test_only_conversion_imports_torch():
    for path in SOURCES:
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "torch" not in names or is_within(module_name(path), "convert"), path


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_every_module_has_a_docstring(path):
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
    from facelift_jax.losses import term_weights, validate_weights
    from facelift_jax.models import get_model

    config = importlib.import_module(f"configs.{recipe}").get_config(argument)
    validate_weights(term_weights(config.loss))
    assert set(config) == {"model", "data", "loss", "optim", "render", "eval", "run"}
    get_model(config.model.name, config.model.variant, **config.model.overrides)


def test_a_bad_config_argument_is_refused():
    from configs.lgm import get_config

    with pytest.raises(
        ValueError, match="unknown config argument 'bigg'; variants: lrm"
    ):
        get_config("bigg")
    with pytest.raises(ValueError, match="choose one variant, not big and tiny"):
        get_config("big,tiny")
    with pytest.raises(ValueError, match="smoke: only for the mini variant"):
        get_config("tiny,smoke")
    from configs import gslrm

    with pytest.raises(ValueError, match="choose one stage, not finetune and pretrain"):
        gslrm.get_config("pretrain256,finetune")
    for argument in ("finetune,demo", "facelift,smoke", "perceptual,demo"):
        with pytest.raises(ValueError, match="only for the mini variant"):
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
        "import facelift_jax.evaluation.report as report;"
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


def test_there_are_eight_fake_devices():
    assert len(jax.devices()) == 8
