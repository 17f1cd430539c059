"""Settings shared by every test: eight fake devices, strict shapes and dtypes."""

import os
import sys
import tempfile

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # inherited from the parent process
os.environ["JAX_PLATFORMS"] = os.environ.get("FACELIFT_TEST_PLATFORM", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import logging
import zlib

import absl.logging
import jax
import numpy as np
import pytest

# Compilation takes most of the time of the tests; with less optimization it takes two
# fifths of that. The commands that tests start compile as usual, and so do tests that
# use the fixture `usual_compiler`.
LESS_OPTIMIZATION: dict[str, int | bool] = {}
if os.environ["JAX_PLATFORMS"] == "cpu":
    LESS_OPTIMIZATION = {"xla_backend_optimization_level": 0}
    if jax.__version_info__ < (0, 11):  # the option is gone in later versions
        LESS_OPTIMIZATION["xla_cpu_use_fusion_emitters"] = False
ADDED = "".join(f" --{name}={int(value)}" for name, value in LESS_OPTIMIZATION.items())
# the parent process may be one of these tests: its additions are not inherited
USUAL_FLAGS = os.environ.get("XLA_FLAGS", "").replace(ADDED, "")
USUAL_FLAGS += " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = USUAL_FLAGS + ADDED

# A compilation cache for the commands that tests start: most of them compile the same
# functions. JAX is imported above, so this process does not use it.
CACHE = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE.name

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def _usual_flags():
    """The usual flags for commands that tests start; JAX has read those of this one."""
    jax.devices()
    os.environ["XLA_FLAGS"] = USUAL_FLAGS


@pytest.fixture(autouse=True)
def _usual_logging():
    """Undoes what `command.log_own_lines` changes, so that no test depends on order."""
    handler = absl.logging.get_absl_handler()
    loggers = (logging.root, logging.getLogger("absl"))
    verbosity, filters = absl.logging.get_verbosity(), list(handler.filters)
    levels = [logger.level for logger in loggers]
    is_attached = handler in logging.root.handlers
    yield
    absl.logging.set_verbosity(verbosity)
    handler.setFormatter(absl.logging.PythonFormatter())
    handler.filters[:] = filters
    if not is_attached:
        logging.root.removeHandler(handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def usual_compiler() -> dict[str, int | bool]:
    """Compiler options that undo LESS_OPTIMIZATION."""
    usual = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    return {name: usual[name] for name in LESS_OPTIMIZATION}


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Runs the `main` of a command here; returns (exit code, stdout, stderr)."""
    from facelift_jax.io import command

    def run(name, main, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            command.run(name, main)
        return ending.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def lpips_folder(tmp_path_factory):
    """The two weight files of LPIPS, with normal numbers seeded by the tensor names."""
    import h5py

    from facelift_jax.metrics.lpips import tensor_shapes

    folder = tmp_path_factory.mktemp("lpips")
    for file_name, shapes in tensor_shapes().items():
        with h5py.File(folder / file_name, "w") as file:
            for name, shape in shapes.items():
                seed = zlib.crc32(name.encode())
                values = np.random.default_rng(seed).standard_normal(shape)
                if name.startswith("lin"):  # the published ones are not negative
                    values = np.abs(values)
                scale = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:3]))
                file[name] = (scale * values).astype(np.float32)
    return folder
