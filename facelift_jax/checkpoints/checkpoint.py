"""Checkpoints: a directory of steps, each complete or absent.

`<directory>/<step>/` holds `state` (arrays by leaf name), `metadata` (JSON) and, for
a training run, `data` (the position of the data iterator). A step is written beside
its final place and renamed when all of it is there. Converted weights are the same
thing: step 0, whose state holds `params` alone.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from facelift_jax.checkpoints import tree

Metadata = dict[str, Any]

# Orbax marks a directory that is still being written with this in its name; so do
# we mark one that is being deleted.
UNFINISHED = ".orbax-checkpoint-tmp"
COMMITTED = "_CHECKPOINT_METADATA"


def save_checkpoint(
    directory: str | Path,
    step: int,
    state: Any,
    *,
    metadata: Metadata,
    keep: int,
    data_iterator: grain.DatasetIterator | None = None,
) -> None:
    """Write one step, then delete all but the newest `keep` steps.

    `state` is any pytree of JAX or NumPy arrays (sharded ones and typed PRNG keys
    too), ints and floats, its parameters under the name `params`; `metadata` is
    strict JSON. Returns when all is on disk. Raises ValueError if the step exists,
    OSError if it cannot be written; the steps before it are then as they were.
    """
    directory = Path(directory).absolute()
    path = directory / str(step)
    if step in all_steps(directory):
        raise ValueError(
            f"{path}: this step is already saved: choose another directory"
        )
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint must stay")
    json.dumps(metadata, allow_nan=False)
    stored = {name: _stored(x) for name, x in tree.flatten_names(state).items()}
    items: dict[str, Any] = {
        "state": ocp.args.PyTreeSave(tree.nest_names(stored)),
        "metadata": ocp.args.JsonSave(metadata),
    }
    if data_iterator is not None:
        items["data"] = grain.checkpoint.CheckpointSave(data_iterator)
    _delete_unfinished(directory)
    _check_space(directory, sum(x.nbytes for x in stored.values()))
    try:
        with ocp.Checkpointer(_uncopied_handler()) as checkpointer:
            # force: an uncommitted directory of that name may be in the way.
            checkpointer.save(path, ocp.args.Composite(**items), force=True)
    except (OSError, ValueError, RuntimeError) as error:
        _delete_unfinished(directory)
        raise OSError(f"{path}: cannot be saved: {_one_line(error)}") from error
    for old in all_steps(directory)[:-keep]:
        _delete(directory / str(old))


def save_params(directory: str | Path, params: Any, metadata: Metadata) -> None:
    """Write parameters alone, as step 0 of a new checkpoint directory.

    Raises ValueError if the directory holds anything already.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory}: not empty: choose another place or empty it")
    save_checkpoint(directory, 0, {"params": params}, metadata=metadata, keep=1)


def all_steps(directory: str | Path) -> list[int]:
    """The complete steps of a checkpoint directory, ascending; empty if it has none."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and (path / COMMITTED).is_file()
    )


def latest_step(directory: str | Path) -> int | None:
    """The newest complete step of a checkpoint directory, None if it has none."""
    return max(all_steps(directory), default=None)


def last_step_before(directory: str | Path, step: int) -> int | None:
    """The newest complete step that is smaller than `step`; None if there is none."""
    return max((s for s in all_steps(directory) if s < step), default=None)


def restore_checkpoint(
    directory: str | Path,
    state_like: Any,
    *,
    data_iterator: grain.DatasetIterator | None = None,
) -> tuple[Any, Metadata]:
    """The latest step's state and metadata, bit for bit; moves the data iterator there.

    `state_like` gives structure, shapes, dtypes and shardings (arrays or
    ShapeDtypeStructs); they need not be the shardings it was saved with. Raises
    ValueError naming the leaves where the checkpoint has another structure.
    """
    path = _latest_path(Path(directory))
    likes = tree.flatten_names(state_like)
    specs = {name: _stored_spec(like) for name, like in likes.items()}
    difference = tree.structure_diff(specs, _saved_specs(path))
    if difference:
        raise ValueError(f"{path}: does not fit: {_list(difference)}")
    items: dict[str, Any] = {"state": _restore_state(specs, likes)}
    if data_iterator is not None:
        if not (path / "data").is_dir():
            raise ValueError(f"{path}: holds no data position: not a training run's")
        items["data"] = grain.checkpoint.CheckpointRestore(data_iterator)
    stored = tree.flatten_names(_restore(path, items)["state"])
    leaves = [_unstored(stored[name], like) for name, like in likes.items()]
    return jax.tree.structure(state_like).unflatten(leaves), _read_metadata(path)


def load_params(directory: str | Path) -> tuple[dict[str, Any], Metadata]:
    """Parameters (nested dictionaries of NumPy arrays) and metadata of the latest step.

    Takes what `save_params` wrote, a training run's checkpoint directory, or the run
    directory that holds `checkpoints/`.
    """
    directory = Path(directory)
    if (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    path = _latest_path(directory)
    specs = {
        name: spec
        for name, spec in _saved_specs(path).items()
        if name.startswith("params/")
    }
    if not specs:
        raise ValueError(
            f"{path}: holds no leaf under params/: not a model's checkpoint"
        )
    restored = _restore(path, {"state": _restore_state(specs, specs)})
    return restored["state"]["params"], _read_metadata(path)


def init_from(
    directory: str | Path, params_like: Any, ignore: Sequence[str] = ()
) -> tuple[Any, list[str]]:
    """Parameters from a checkpoint in the structure of `params_like`.

    A missing, extra or reshaped leaf is an error unless a regular expression of
    `ignore` matches its whole name. A missing or reshaped leaf then keeps its value in
    `params_like` (concrete arrays), an extra leaf is left out.

    Returns:
      The parameters, and one line per ignored difference.

    Raises:
      ValueError: leaves that differ and are not ignored, or an expression of `ignore`
        that matches no difference.
    """
    saved, _ = load_params(directory)
    difference = tree.structure_diff(params_like, saved)
    bad = {
        name: line
        for name, line in difference.items()
        if not any(re.fullmatch(pattern, name) for pattern in ignore)
    }
    if bad:
        raise ValueError(
            f"{directory}: does not fit: {_list(bad)}; allow differences by "
            "run.init_ignore"
        )
    for pattern in ignore:
        if not any(re.fullmatch(pattern, name) for name in difference):
            raise ValueError(
                f"{directory}: run.init_ignore: {pattern!r} matches no difference: "
                "remove it"
            )
    loaded = tree.flatten_names(saved)
    leaves = [
        like if name in difference else _place(loaded[name], like)
        for name, like in tree.flatten_names(params_like).items()
    ]
    return jax.tree.structure(params_like).unflatten(leaves), list(difference.values())


def _uncopied_handler() -> ocp.CompositeCheckpointHandler:
    """Orbax's handler, but NumPy arrays are written from where they are.

    Its own copies them first, for callers that do not wait for the end of a save.
    """
    types, registry = ocp.type_handlers, ocp.handlers.DefaultCheckpointHandlerRegistry()
    leaves = types.create_type_handler_registry(
        (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, types.get_type_handler(jax.Array)),
    )
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=leaves)
    registry.add("state", ocp.args.PyTreeSave, state)
    return ocp.CompositeCheckpointHandler(handler_registry=registry)


def _check_space(directory: Path, num_bytes: int) -> None:
    """Raises OSError if the disk has not that much left."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise OSError(
            f"{directory}: a checkpoint takes {num_bytes / 2**20:.1f} MiB, but the "
            f"disk has {free / 2**20:.1f} MiB left: free some"
        )


def _stored(leaf: Any) -> Any:
    """What is written for a leaf: a JAX array or a NumPy array."""
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.asarray(leaf)


def _stored_spec(like: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of what is written for such a leaf."""
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        like = np.asarray(like)
    elif _is_key(like):
        like = jax.eval_shape(jax.random.key_data, like)
    return jax.ShapeDtypeStruct(like.shape, like.dtype)


def _unstored(array: Any, like: Any) -> Any:
    """The leaf of the kind of `like` for what was written."""
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        return array if isinstance(like, np.ndarray) else type(like)(array.item())
    if not _is_key(like):
        return jnp.asarray(array)
    impl = jax.random.key_impl(jnp.empty((), like.dtype))
    key = jax.random.wrap_key_data(array, impl=impl)
    sharding = _sharding(like)
    return key if sharding is None else jax.device_put(key, sharding)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _sharding(like: Any) -> jax.sharding.Sharding | None:
    """Where a leaf must be; None where it may be anywhere (an uncommitted array)."""
    is_free = isinstance(like, jax.Array) and not like.committed
    return None if is_free else getattr(like, "sharding", None)


def _place(array: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return array
    sharding = _sharding(like)
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _restore_state(specs: dict[str, Any], likes: dict[str, Any]) -> Any:
    def restore_args(like: Any, spec: Any) -> ocp.RestoreArgs:
        sharding = _sharding(like)
        if sharding is None or spec.dtype != like.dtype:  # a key's data, or anywhere
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(
            sharding=sharding, global_shape=spec.shape, dtype=spec.dtype
        )

    arguments = {name: restore_args(likes[name], spec) for name, spec in specs.items()}
    return ocp.args.PyTreeRestore(
        item=tree.nest_names(specs),
        restore_args=tree.nest_names(arguments),
        partial_restore=True,
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises, from three libraries, into one line."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read: {_one_line(error)}") from error


def _restore(path: Path, items: dict[str, Any]) -> Any:
    handler = ocp.CompositeCheckpointHandler()
    with _reading(path), ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(path, ocp.args.Composite(**items))


def _saved_specs(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    with _reading(path):
        saved = ocp.PyTreeCheckpointHandler().metadata(epath.Path(path / "state")).tree
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in tree.flatten_names(saved).items()
    }


def _read_metadata(path: Path) -> Metadata:
    with _reading(path):
        return json.loads((path / "metadata" / "metadata").read_text())


def _latest_path(directory: Path) -> Path:
    step = latest_step(directory)
    if step is None:
        raise FileNotFoundError(
            f"{directory}: no complete checkpoint here: check the path"
        )
    return directory.absolute() / str(step)


def _delete(path: Path) -> None:
    """Delete a step so that a kill half-way leaves nothing that looks complete."""
    if jax.process_index() == 0:
        doomed = path.with_name(f"{path.name}{UNFINISHED}-deleted")
        path.rename(doomed)
        shutil.rmtree(doomed)


def _delete_unfinished(directory: Path) -> None:
    """Remove what killed or failed saves left, to give back its space.

    Threads of a save that has just failed may still write there: what they leave goes
    with the next save.
    """
    if jax.process_index() == 0 and directory.is_dir():
        for path in directory.iterdir():
            if UNFINISHED in path.name:
                shutil.rmtree(path, ignore_errors=True)


def _list(difference: dict[str, str]) -> str:
    return tree.list_names(list(difference.values()))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
