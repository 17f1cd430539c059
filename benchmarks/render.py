"""Times the renderer: forward, forward + backward, stages, list entries, peak memory.

    python -m benchmarks.render --out render.json lgm gslrm n64k

Each workload runs in its own process, which separates their peak memory. Times are
medians after warm-up, of whole calls of `render`, with gradients to means, quats,
scales, opacities and colors.
"""

import functools
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gsplat_baseline, scenes
from facelift_jax.io import command
from facelift_jax.render import RenderConfig, api, render
from facelift_jax.render import rasterize_pallas as pallas
from facelift_jax.render.kernels import binning, blending
from facelift_jax.render.kernels.launch import RECORD

REPEATS = 20


def parse(arguments: list[str]):
    """Parses the command's flags."""
    parser = command.Parser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("workloads", nargs="+", choices=sorted(scenes.WORKLOADS))
    parser.add_argument("--backend", default="pallas", help="of `render`")
    parser.add_argument(
        "--tile-size", type=int, default=RenderConfig.tile_size, help="pixels"
    )
    parser.add_argument("--slice-entries", type=int, help="as in RenderConfig")
    parser.add_argument(
        "--interpret",
        action="store_true",
        help="run the kernels in interpret mode, without a GPU",
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, help="timed calls")
    parser.add_argument(
        "--stages",
        action="store_true",
        help="also time each stage of the first slice (--backend pallas)",
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="measure in this process (used by the command itself)",
    )
    flags = parser.parse_args(arguments)
    if flags.stages and flags.backend != "pallas":
        parser.error("--stages: only for --backend pallas")
    return flags


def milliseconds(function, *arguments, repeats: int) -> float:
    """Median time of a call, after two calls to compile and warm up."""
    for _ in range(2):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def measure(name: str, flags) -> dict[str, float]:
    """All measurements of one workload, in this process."""
    config = RenderConfig(
        tile_size=flags.tile_size,
        slice_entries=flags.slice_entries,
        interpret=flags.interpret,
    )
    gaussians, cameras, cotangents = jax.device_put(
        scenes.make_scenes(scenes.WORKLOADS[name])
    )
    white = jnp.ones(3)

    @jax.jit
    def forward(gaussians, cameras):
        return render(gaussians, cameras, white, config=config, backend=flags.backend)

    def loss(gaussians, cameras):
        out = forward(gaussians, cameras)
        images = (out.colors, out.alphas, out.depths)
        pairs = zip(images, cotangents, strict=True)
        total = sum(jnp.sum(x * jnp.broadcast_to(w, x.shape)) for x, w in pairs)
        return total, out.dropped.sum()

    both = jax.jit(jax.grad(loss, has_aux=True))
    gradients, dropped = both(gaussians, cameras)
    is_finite = all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))
    row = {
        "forward_ms": milliseconds(forward, gaussians, cameras, repeats=flags.repeats),
        "both_ms": milliseconds(both, gaussians, cameras, repeats=flags.repeats),
        "dropped": int(dropped),
        "is_finite": is_finite,
    }
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        row["peak_gib"] = stats["peak_bytes_in_use"] / 2**30
    if flags.stages:
        row |= stages(gaussians, cameras, config, flags.repeats)
    return row


def stages(gaussians, cameras, config, repeats) -> dict[str, float]:
    """Milliseconds of each stage of the first slice, and the entries of its lists.

    Stages that overwrite an input copy it first when they are timed alone, so blend,
    differentiate and sum_rows are faster inside a whole call.
    """

    @jax.jit
    def project(gaussians, cameras):
        lead = (*gaussians.means.shape[:-2], cameras.viewmats.shape[-3])
        return api.project_all(gaussians, cameras, lead, config, "pallas")

    splats = project(gaussians, cameras)
    images, n = splats.depths.shape
    sizes = pallas.make_sizes(images, n, (cameras.width, cameras.height, config))
    prepare = jax.jit(lambda s: pallas._pack_and_sort(sizes, s))
    scene = prepare(splats)
    is_open, first = jnp.ones(sizes.num_tiles, jnp.int32), jnp.int32(0)

    @jax.jit
    def count(scene, is_open):
        table = pallas._open_table(sizes, is_open)
        return binning.count_tiles(sizes, scene.records, scene.order, table, first)

    def of_sizes(function):
        return jax.jit(functools.partial(function, sizes))

    lister = of_sizes(pallas.make_lists)
    lists = lister(scene, is_open, first)
    shape = (5, images, cameras.height, cameras.width)
    state = jnp.zeros(shape, jnp.float32).at[0].set(1)
    d_pixels = jnp.ones((4, *shape[1:]), jnp.float32)
    bounds = (lists.starts, lists.ends)
    blended = (scene.records, lists.entries, *bounds, state)
    back = (scene.records, lists.entries, lists.slots, *bounds, state[:2], d_pixels)
    differentiate = of_sizes(blending.differentiate)
    _, _, rows, ends = differentiate(*back)
    sums = jnp.zeros((sizes.num_records, RECORD), jnp.float32)
    listed = (lists.counts, lists.firsts)
    calls = {
        "project": (project, gaussians, cameras),
        "prepare": (prepare, splats),
        "list": (lister, scene, is_open, first),
        "list_count": (count, scene, is_open),
        "list_emit": (
            of_sizes(binning.emit_entries),
            *(scene.records, scene.order, is_open, *listed),
        ),
        "blend": (of_sizes(blending.blend), *blended),
        "differentiate": (differentiate, *back),
        "sum_rows": (
            of_sizes(blending.sum_rows),
            *(rows, ends, lists.tiles, scene.order, *listed, sums),
        ),
    }
    counts = np.asarray(count(scene, is_open), np.int64)
    row = {"entries": int(counts.sum())} | entries(sizes, lists, ends)
    times = {name: milliseconds(*call, repeats=repeats) for name, call in calls.items()}
    return {f"{name}_ms": time for name, time in times.items()} | row


def entries(sizes, lists, ends) -> dict[str, float]:
    """Capacity of a slice; its entries in rectangles, in ellipses, and read."""
    reached = ends.at[lists.tiles].get(mode="fill", fill_value=0)  # 0 for unused slots
    return {
        "capacity": sizes.capacity,
        "entries_slice": int(jnp.sum(lists.counts)),
        "entries_kept": int(lists.ends[-1]),
        "entries_read": int(jnp.sum(jnp.arange(sizes.capacity) < reached)),
        "taken": int(lists.num_taken[0]),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """One line per measurement, one column per workload."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))

    def cell(value):
        return f"{value:.3f}" if isinstance(value, float) else str(value)

    lines = [f"{'':<18}" + "".join(f"{name:>14}" for name in rows)]
    for key in keys:
        cells = "".join(f"{cell(row.get(key, '-')):>14}" for row in rows.values())
        lines.append(f"{key:<18}{cells}")
    return "\n".join(lines)


def in_child(module: str, arguments: list[str]) -> dict[str, float | str]:
    """The module's last printed line as JSON; if it fails, its last error line."""
    child = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {"failed": f"{module}: {lines[-1]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Runs the command; exit code 1 if a workload failed."""
    flags = parse(arguments)
    if flags.alone:
        print(json.dumps(measure(flags.workloads[0], flags)))
        return
    rows = {}
    options = [f"--backend={flags.backend}", f"--tile-size={flags.tile_size}"]
    options += [f"--repeats={flags.repeats}", "--alone"]
    if flags.slice_entries is not None:
        options += [f"--slice-entries={flags.slice_entries}"]
    options += ["--interpret"] if flags.interpret else []
    options += ["--stages"] if flags.stages else []
    for name in flags.workloads:
        rows[name] = in_child("benchmarks.render", [name, *options])
        if gsplat_baseline.is_installed():
            rows[name] |= in_child(
                "benchmarks.gsplat_baseline", [name, str(flags.repeats)]
            )
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {flags.backend}")
    print(table(rows))
    if flags.out:
        flags.out.write_text(json.dumps(rows, indent=1) + "\n")
    if any("failed" in row for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
