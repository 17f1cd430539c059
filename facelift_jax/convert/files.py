"""Reads the tensors of a .safetensors or PyTorch file, one at a time.

Files are not trusted: a header that claims more data than the file holds is refused,
and a pickle can only create tensors in plain containers.
"""

import contextlib
import importlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

Tensors = tuple[list[str], Callable[[str], np.ndarray]]


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Tensors]:
    """The names of a file's tensors, and a function that reads one of them.

    Raises:
      ValueError: the file is of an unsupported kind, damaged or not safe to read.
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: a PyTorch file, and PyTorch is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        with _open_safetensors(path) as tensors:
            yield tensors
    elif path.suffix in (".pt", ".pth"):
        yield _load_torch(path)
    else:
        raise ValueError(f"{path}: expected a .safetensors, .pt or .pth file")


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Tensors]:
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: incomplete or damaged safetensors file ({error}); download it "
            "again"
        ) from error
    with file:
        yield list(file.keys()), file.get_tensor


def _load_torch(path: Path) -> Tensors:
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path}: reading it needs PyTorch, which is not installed: "
            "pip install torch, or convert a .safetensors file"
        ) from error
    try:
        # only zip archives can be mapped into memory; PyTorch before 1.6 wrote others
        state = torch.load(
            path,
            map_location="cpu",
            weights_only=True,
            mmap=zipfile.is_zipfile(path),
        )
    except Exception as error:  # a hostile pickle may raise anything
        raise ValueError(
            f"{path}: torch.load(weights_only=True) refuses it "
            f"({type(error).__name__}); give a file that holds only tensors"
        ) from error
    # a training checkpoint holds the network and its optimizer's state
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) and value.layout == torch.strided
        for value in state.values()
    ):
        raise ValueError(f"{path}: expected a dictionary of dense tensors by name")

    def read(name: str) -> np.ndarray:
        tensor = state[name].detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()

    return list(state), read
