"""Times gsplat, if it is installed, on the workloads of `benchmarks.render`.

    python -m benchmarks.gsplat_baseline lgm 20

Takes a workload and a number of repeats; prints one line of JSON. It times whole calls
of `gsplat.rasterization` (RGB, alpha and depth; unpacked, dense gradients), with
gradients to the same inputs as `benchmarks.render`.
"""

import importlib
import importlib.util
import json
import sys
import time

import numpy as np

from benchmarks import scenes
from facelift_jax.geometry.numerics import SH_C0


def is_installed() -> bool:
    """Whether torch and gsplat can be imported."""
    return all(importlib.util.find_spec(name) for name in ("torch", "gsplat"))


def measure(name: str, repeats: int) -> dict[str, float]:
    """gsplat's milliseconds of forward and forward + backward, and its peak memory."""
    torch, gsplat = (importlib.import_module(x) for x in ("torch", "gsplat"))

    def on_gpu(values):
        return torch.tensor(np.asarray(values), device="cuda")

    gaussians, cameras, cotangents = scenes.make_scenes(scenes.WORKLOADS[name])
    inputs = {
        "means": gaussians.means,
        "quats": gaussians.quats,
        "scales": gaussians.scales,
        "opacities": gaussians.opacities,
        "colors": 0.5 + SH_C0 * gaussians.sh[..., 0, :],
    }
    inputs = {key: on_gpu(x).requires_grad_() for key, x in inputs.items()}
    weights = [on_gpu(x) for x in cotangents]
    background = torch.ones((*cameras.viewmats.shape[:-2], 3), device="cuda")
    fixed = {
        "viewmats": on_gpu(cameras.viewmats),
        "Ks": on_gpu(cameras.Ks),
        "width": cameras.width,
        "height": cameras.height,
        "packed": False,
        "backgrounds": background,
        "render_mode": "RGB+ED",
    }

    def forward():
        return gsplat.rasterization(**inputs, **fixed)[:2]

    def without_gradients():
        with torch.no_grad():
            forward()

    def both():
        images, alphas = forward()
        outputs = (images[..., :3], alphas, images[..., 3:])
        pairs = zip(outputs, weights, strict=True)
        loss = sum((x * w).sum() for x, w in pairs)
        torch.autograd.grad(loss, list(inputs.values()))

    def milliseconds(function):
        times = []
        for repeat in range(repeats + 2):  # two to warm up
            torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            torch.cuda.synchronize()
            if repeat >= 2:
                times.append(time.perf_counter() - start)
        return 1e3 * float(np.median(times))

    return {
        "gsplat_forward_ms": milliseconds(without_gradients),
        "gsplat_both_ms": milliseconds(both),
        "gsplat_peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
