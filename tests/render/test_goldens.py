"""Images and gradients against gsplat 1.5.3's rules in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from render_scenes import BACKENDS, SCENES, SH_C0, golden, max_error, settings

from facelift_jax.render import render
from facelift_jax.structs import Cameras, Gaussians

VARIANTS = ("gsplat64", "aa64")
# Interpreted kernels are dear to compile, and antialiasing is the projection's, which
# the other backends' cases cover: all but one of both together are slow.
DEAR = {("pallas", name, "aa64") for name in SCENES if name != "rand200"}
CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] * (case in DEAR))
    for case in itertools.product(BACKENDS, SCENES, VARIANTS)
]
# Several times what was measured (1e-6 and 4e-6 in float32, 4e-15 and 8e-15 in
# float64), which is rounding of exponents and of sums over pixels.
OUTPUT_BOUND = {"float32": 1e-5, "float64": 1e-12}
GRADIENT_BOUND = {"float32": 2e-5, "float64": 1e-12}


def _run(data, variant, backend, dtype, compiler_options):
    """Images and gradients; goldens hold plain colours and accumulated depth."""
    width, height = int(data["in/width"]), int(data["in/height"])
    config = settings(backend, alpha_max=0.999, antialiased=variant == "aa64")
    colors = data["in/colors"].astype(np.float64)
    inputs = {
        name: jnp.asarray(data[f"in/{name}"], dtype)
        for name in ("means", "quats", "scales", "opacities", "viewmats", "background")
    }
    inputs["sh"] = jnp.asarray((colors - 0.5) / SH_C0, dtype)[..., None, :]
    Ks = jnp.asarray(data["in/Ks"], dtype)
    keep = ~data["fragile"][..., None]
    cot = [
        jnp.asarray(np.where(keep, data[f"cot/{k}"], 0), dtype)
        for k in ("rgb", "alpha", "depth")
    ]

    def loss(p):
        gaussians = Gaussians(
            p["means"], p["quats"], p["scales"], p["opacities"], p["sh"]
        )
        cameras = Cameras(p["viewmats"], Ks, width, height)
        out = render(
            gaussians, cameras, p["background"], config=config, backend=backend
        )
        outputs = (out.colors, out.alphas, out.depths * out.alphas)
        return sum(jnp.sum(o * c) for o, c in zip(outputs, cot, strict=True)), outputs

    gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=compiler_options)
    gradients, outputs = gradient(inputs)
    gradients["colors"] = gradients.pop("sh")[..., 0, :] / SH_C0
    return outputs, gradients


def errors(name, variant, backend, dtype, compiler_options=None):
    """{scene: largest errors (output, depth, relative gradient)}."""
    data = golden(name)
    outputs, gradients = _run(data, variant, backend, dtype, compiler_options)
    result = {}
    for i, scene in enumerate(data["names"]):
        off = [
            max_error(o[i], data[f"{variant}/{k}"][i], data["fragile"][i])
            for o, k in zip(outputs, ("rgb", "alpha", "depth"), strict=True)
        ]
        expected = {k: data[f"{variant}/d_{k}"][i] for k in gradients}
        largest = max(np.abs(e).max() for e in expected.values())
        relative = [
            max_error(gradients[k][i], e) / max(np.abs(e).max(), 1e-3 * largest, 1e-12)
            for k, e in expected.items()
        ]
        result[str(scene)] = (max(off[:2]), off[2], max(relative))
    return result


def _check(found, dtype):
    largest = np.max(list(found.values()), axis=0)
    print("max_error output {:.1e}, depth {:.1e}, gradient {:.1e}".format(*largest))
    for scene, (output, depth, gradient) in found.items():
        assert output <= OUTPUT_BOUND[dtype], scene
        assert depth <= 2 * OUTPUT_BOUND[dtype], scene
        assert gradient <= GRADIENT_BOUND[dtype], scene


@pytest.mark.parametrize(("backend", "name", "variant"), CASES)
def test_float32(backend, name, variant):
    _check(errors(name, variant, backend, "float32"), "float32")


def test_float32_as_users_compile_it(usual_compiler):
    _check(errors("rand200", "aa64", "xla", "float32", usual_compiler), "float32")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SCENES)
def test_float64_reference(name, variant):
    with jax.enable_x64(True):
        _check(errors(name, variant, "reference", "float64"), "float64")
