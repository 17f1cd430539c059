"""Checkpoints: a directory of steps, each of which is complete or absent.

`<directory>/<step>/` holds `state` (arrays by leaf name), `metadata` (JSON) and, for
a training run, `data` (the position of the data iterator). Orbax writes a step under a
temporary name and renames it when all of it is written. Converted weights have the same
layout: step 0, whose state holds `params` alone.

`orbax.checkpoint.CheckpointManager` saves the steps and decides which to delete. This
module adds three things. It checks the free space first. A directory with a number as
its name counts as a step only if it is complete; an interrupted copy is not. Orbax
deletes steps file by file, so that a kill halfway would leave a step that looks
complete; here Orbax only moves steps away, and they are deleted afterwards.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from facelift_jax.checkpoints import tree
from facelift_jax.io.extras import extra

if TYPE_CHECKING:
    import grain

Metadata = dict[str, Any]

UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a directory still being written
DELETED = f"deleted{UNFINISHED}"  # where Orbax moves the steps that are to be deleted
COMMITTED = "_CHECKPOINT_METADATA"  # a file of every complete step


def save_checkpoint(
    directory: str | Path,
    step: int,
    state: Any,
    *,
    metadata: Metadata,
    keep: int,
    data_iterator: "grain.DatasetIterator | None" = None,
) -> None:
    """Writes one step, then delete all but the newest `keep` steps.

    `state` is any pytree of JAX or NumPy arrays (sharded arrays and typed PRNG keys
    too), ints and floats, its parameters under the name `params`; `metadata` is
    strict JSON. Returns when everything is on disk.

    Raises:
      ValueError: the step exists, or `keep` or `metadata` is invalid.
      OSError: the step cannot be written; the older steps are then unchanged.
    """
    directory = Path(directory).absolute()
    path = directory / str(step)
    if step in all_steps(directory):
        raise ValueError(f"{path}: this step exists already: choose another directory")
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint must be kept")
    json.dumps(metadata, allow_nan=False)
    stored = {name: _stored(x) for name, x in tree.flatten_names(state).items()}
    items: dict[str, Any] = {
        "state": ocp.args.PyTreeSave(tree.nest_names(stored)),
        "metadata": ocp.args.JsonSave(metadata),
    }
    if data_iterator is not None:
        with extra("train"):
            import grain
        items["data"] = grain.checkpoint.CheckpointSave(data_iterator)
    _delete_incomplete(directory)
    _check_space(directory, sum(x.nbytes for x in stored.values()))
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        todelete_subdir=DELETED,
        enable_async_checkpointing=False,
        save_root_metadata=False,
    )
    try:
        with ocp.CheckpointManager(directory, options=options) as manager:
            manager.save(step, args=ocp.args.Composite(**items), force=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise OSError(f"{path}: cannot be saved: {_one_line(error)}") from error
    finally:
        _delete_incomplete(directory)


def save_params(directory: str | Path, params: Any, metadata: Metadata) -> None:
    """Writes parameters alone, as step 0 of a new checkpoint directory.

    Raises:
      ValueError: the directory is not empty.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ValueError(f"{directory}: not empty: choose another directory")
    save_checkpoint(directory, 0, {"params": params}, metadata=metadata, keep=1)


def all_steps(directory: str | Path) -> list[int]:
    """The complete steps of a checkpoint directory, ascending."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if _is_step(path) and _is_complete(path)
    )


def latest_step(directory: str | Path) -> int | None:
    """The newest complete step of a checkpoint directory; None if there is none."""
    return max(all_steps(directory), default=None)


def last_step_before(directory: str | Path, step: int) -> int | None:
    """The newest complete step that is smaller than `step`; None if there is none."""
    return max((s for s in all_steps(directory) if s < step), default=None)


def restore_checkpoint(
    directory: str | Path,
    state_like: Any,
    *,
    data_iterator: "grain.DatasetIterator | None" = None,
) -> tuple[Any, Metadata]:
    """The state, bit for bit, and the metadata of the latest step.

    `state_like` gives structure, shapes, dtypes and shardings (arrays or
    ShapeDtypeStructs). The shardings may differ from those of the saved state. The
    data iterator, if given, is moved to its saved position.

    Raises:
      FileNotFoundError: no complete step.
      ValueError: the checkpoint has another structure (names the leaves), has no
        position for the data iterator, or cannot be read.
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
            raise ValueError(
                f"{path}: holds no position of the data iterator: give the checkpoints "
                "of a training run"
            )
        with extra("train"):
            import grain
        items["data"] = grain.checkpoint.CheckpointRestore(data_iterator)
    stored = tree.flatten_names(_restore(path, items)["state"])
    leaves = [_unstored(stored[name], like) for name, like in likes.items()]
    return jax.tree.structure(state_like).unflatten(leaves), _read_metadata(path)


def load_params(directory: str | Path) -> tuple[dict[str, Any], Metadata]:
    """Parameters (nested dictionaries of NumPy arrays) and metadata of the latest step.

    `directory` is one that `save_params` wrote, the checkpoint directory of a training
    run, or the run directory that holds `checkpoints/`.

    Raises:
      FileNotFoundError: no complete step.
      ValueError: the checkpoint holds no parameters or cannot be read.
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
            f"{path}: holds no leaf under params/: not the checkpoint of a model"
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
            f"{directory}: does not fit: {_list(bad)}; allow differences with "
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


class _Uncopied(np.ndarray):
    """An array view that Orbax writes without copying it.

    Orbax deep-copies NumPy arrays first, for callers that do not wait for the end of a
    save. Saves in this module are synchronous.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Uncopied":
        return self


def _check_space(directory: Path, num_bytes: int) -> None:
    """Raises OSError if the disk has less than `num_bytes` free."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise OSError(
            f"{directory}: a checkpoint takes {num_bytes / 2**20:.1f} MiB, but the "
            f"disk has {free / 2**20:.1f} MiB left: free some space"
        )


def _stored(leaf: Any) -> Any:
    """The JAX or NumPy array that is written for a leaf."""
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.asarray(leaf).view(_Uncopied)


def _stored_spec(like: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the array that is written for a leaf like `like`."""
    if not isinstance(like, jax.Array | jax.ShapeDtypeStruct):
        like = np.asarray(like)
    elif _is_key(like):
        like = jax.eval_shape(jax.random.key_data, like)
    return jax.ShapeDtypeStruct(like.shape, like.dtype)


def _unstored(array: Any, like: Any) -> Any:
    """A leaf of the kind of `like` from the array that was written for it."""
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
    """The sharding that a leaf must have; None for an uncommitted array (any)."""
    is_uncommitted = isinstance(like, jax.Array) and not like.committed
    return None if is_uncommitted else getattr(like, "sharding", None)


def _place(array: np.ndarray, like: Any) -> Any:
    if not isinstance(like, jax.Array):
        return array
    sharding = _sharding(like)
    return jnp.asarray(array) if sharding is None else jax.device_put(array, sharding)


def _restore_state(specs: dict[str, Any], likes: dict[str, Any]) -> Any:
    def restore_args(like: Any, spec: Any) -> ocp.RestoreArgs:
        sharding = _sharding(like)
        if sharding is None or spec.dtype != like.dtype:  # any sharding, or a key
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
    """Turns the errors that libraries raise for damaged files into one line."""
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
            f"{directory}: holds no complete checkpoint: check the path"
        )
    return directory.absolute() / str(step)


def _delete_incomplete(directory: Path) -> None:
    """Deletes the remains of killed or failed saves, deletions and copies.

    Threads of a save that has just failed may still be writing; the next save deletes
    what they leave.
    """
    if jax.process_index() > 0 or not directory.is_dir():
        return
    for path in directory.iterdir():
        if UNFINISHED in path.name or (_is_step(path) and not _is_complete(path)):
            shutil.rmtree(path, ignore_errors=True)


def _is_step(path: Path) -> bool:
    return path.name.isdecimal() and path.is_dir()


def _is_complete(path: Path) -> bool:
    return (path / COMMITTED).is_file()


def _list(difference: dict[str, str]) -> str:
    return tree.list_names(list(difference.values()))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
