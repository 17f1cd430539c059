"""How batches and state are split over devices: a mesh of two axes, (data, fsdp)."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")
Render = TypeVar("Render", bound=Callable[..., Any])

SCENES = PartitionSpec(("data", "fsdp"))
MIN_SHARDED_SIZE = 2**16  # entries; smaller leaves are replicated


def make_mesh(fsdp: int, batch_size: int) -> Mesh:
    """All devices as (data, fsdp); scenes are split over both, parameters over fsdp.

    Raises:
      ValueError: the number of devices does not fit; one line.
    """
    num_devices = jax.device_count()
    if num_devices % fsdp:
        raise ValueError(
            f"run.fsdp={fsdp} does not divide the {num_devices} devices; set it to 1"
        )
    if batch_size % num_devices:
        raise ValueError(
            f"run.batch_size={batch_size} is not a multiple of the {num_devices} "
            f"devices; set it to {-(-batch_size // num_devices) * num_devices}"
        )
    axis_types = (AxisType.Auto, AxisType.Auto)
    shape = (num_devices // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=axis_types)


def state_shardings(mesh: Mesh, state: Tree) -> Tree:
    """Splits large leaves over `fsdp`, along their longest axis that divides evenly."""
    size = mesh.shape["fsdp"]

    def sharding(leaf: Any) -> NamedSharding:
        spec = [None] * leaf.ndim
        axes = [i for i in range(leaf.ndim) if leaf.shape[i] % size == 0]
        if size > 1 and axes and leaf.size >= MIN_SHARDED_SIZE:
            spec[max(axes, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(sharding, state)


def shard_batch(batch: Tree, mesh: Mesh) -> Tree:
    """This process's part of a batch as global arrays, split by scene."""
    sharding = NamedSharding(mesh, SCENES)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )


def shard_scenes(render_fn: Render, mesh: Mesh) -> Render:
    """The renderer, with each device rendering its own scenes."""
    return jax.shard_map(
        render_fn,
        mesh=mesh,
        in_specs=(SCENES, SCENES),
        out_specs=SCENES,
        check_vma=False,  # the renderer's loops start from unsplit constants
    )
