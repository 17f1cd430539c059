"""Settings shared by every test: eight fake devices, strict shapes and dtypes."""

import os
import tempfile

os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # of the process that started this
os.environ["JAX_PLATFORMS"] = os.environ.get("FACELIFT_TEST_PLATFORM", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"

import zlib

import jax
import numpy as np
import pytest

# Compiling is most of the tests' time, and this shortens it to two fifths. The commands
# that tests start compile as users do, and so do tests that take `usual_compiler`.
QUICK: dict[str, int | bool] = {}
if os.environ["JAX_PLATFORMS"] == "cpu":
    QUICK = {"xla_backend_optimization_level": 0}
    if jax.__version_info__ < (0, 11):  # later there is no such choice
        QUICK["xla_cpu_use_fusion_emitters"] = False
HURRY = "".join(f" --{name}={int(value)}" for name, value in QUICK.items())
# of the process that started this, which may be one of these tests' own
FLAGS = os.environ.get("XLA_FLAGS", "").replace(HURRY, "")
FLAGS += " --xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = FLAGS + HURRY

# for the commands that tests start: most compile what another one has compiled; jax is
# imported here, so this process does without
COMPILED = tempfile.TemporaryDirectory()
os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session", autouse=True)
def _usual_flags():
    """For the commands that tests start; this process has read its own."""
    jax.devices()
    os.environ["XLA_FLAGS"] = FLAGS


@pytest.fixture(scope="session")
def usual_compiler() -> dict[str, int | bool]:
    """Compiler options that undo QUICK."""
    usual = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    return {name: usual[name] for name in QUICK}


@pytest.fixture(scope="session")
def lpips_folder(tmp_path_factory):
    """LPIPS' two weight files, from a recipe: normal numbers seeded by their names."""
    import h5py

    from facelift_jax.metrics.lpips import tensor_shapes

    folder = tmp_path_factory.mktemp("lpips")
    for file_name, shapes in tensor_shapes().items():
        with h5py.File(folder / file_name, "w") as file:
            for name, shape in shapes.items():
                seed = zlib.crc32(name.encode())
                values = np.random.default_rng(seed).standard_normal(shape)
                if name.startswith("lin"):  # the published ones are not negative either
                    values = np.abs(values)
                scale = 0.1 if len(shape) == 1 else np.sqrt(2 / np.prod(shape[:3]))
                file[name] = (scale * values).astype(np.float32)
    return folder
