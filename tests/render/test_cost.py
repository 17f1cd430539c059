"""Time and memory on two cores; -s prints the measurements."""

import json
import subprocess
import sys

import pytest

# Full-size workloads: minutes on two cores.
pytestmark = pytest.mark.slow

# Each measurement runs in a fresh process: peak memory counts a whole process.
PROGRAM = """
import json, sys, time
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, {folder!r})
from benchmarks.scenes import Workload, make_scenes, surface_cloud, untrained_cloud
gaussians, cameras, _ = jax.device_put(make_scenes({workload}))
backend = {backend!r}
from facelift_jax.render import render

def forward(gaussians):
    return render(gaussians, cameras, jnp.ones(3), backend=backend)

def loss(gaussians):
    out = forward(gaussians)
    images = (out.colors, out.alphas, out.depths)
    return sum(jnp.sum(jnp.sin(3 * image)) for image in images), jnp.sum(out.dropped)

def seconds(function):
    jax.block_until_ready(function(gaussians))
    times = []
    for _ in range({repeats}):
        start = time.perf_counter()
        result = jax.block_until_ready(function(gaussians))
        times.append(time.perf_counter() - start)
    return float(np.median(times)), result

forward_seconds, _ = seconds(jax.jit(forward))
both = jax.jit(jax.grad(loss, has_aux=True))
start = time.perf_counter()
jax.block_until_ready(both(gaussians))
first = time.perf_counter() - start
both_seconds, (gradients, dropped) = seconds(both)
# getrusage would count the parent's memory too
lines = open('/proc/self/status').read().splitlines()
peak_kb = next(int(x.split()[1]) for x in lines if x.startswith('VmHWM:'))
print(json.dumps(dict(
    forward_s=round(forward_seconds, 3),
    forward_backward_s=round(both_seconds, 3),
    first_call_s=round(first, 1),
    dropped=int(dropped),
    is_finite=all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients)),
    peak_gb=round(peak_kb / 2**20, 2),
)))
"""


def _measure(folder, workload, backend, repeats):
    program = PROGRAM.format(
        folder=folder, workload=workload, backend=backend, repeats=repeats
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{workload}, {backend}: {costs}")
    assert costs["is_finite"]
    assert costs["dropped"] == 0
    return costs


@pytest.fixture
def folder(request):
    return str(request.config.rootpath)


def test_reference_stays_within_time_and_memory(folder):
    costs = _measure(
        folder, "Workload(1, 5000, 3, 128, surface_cloud(0.03))", "reference", 1
    )
    assert costs["first_call_s"] < 60
    assert costs["peak_gb"] < 4


def test_untrained_network_drops_nothing(folder):
    """65,536 Gaussians near the origin: lists of tens of thousands of entries."""
    costs = _measure(folder, "Workload(1, 65536, 8, 64, untrained_cloud)", "xla", 1)
    assert costs["peak_gb"] < 4


def test_demo_step(folder):
    """4 scenes x 4 views of 96 x 96 pixels, 3,456 Gaussians each."""
    costs = _measure(folder, "Workload(4, 3456, 4, 96, surface_cloud(0.03))", "xla", 5)
    assert costs["peak_gb"] < 4
