"""The converter command: files to checkpoints, and one line for each bad file."""

import hashlib
import importlib.util
import json
import struct
import zipfile

import jax
import numpy as np
import pytest
from lgm_recipe import KEYS, MICRO, micro_state
from safetensors.numpy import save_file

from facelift_jax.checkpoints.checkpoint import load_params
from facelift_jax.convert import from_torch, lgm
from facelift_jax.convert.__main__ import main


@pytest.fixture
def run_command(run_main):
    """Runs the command with arguments; returns (exit code, stderr)."""

    def run(*arguments):
        code, _, err = run_main("convert", main, *arguments)
        return code, err

    return run


@pytest.fixture
def convert(tmp_path, run_command):
    """Runs the command on a file; returns (exit code, stderr)."""

    def run(src):
        arguments = ["--model", "lgm", "--variant", "big", "--src", str(src)]
        arguments += ["--overrides", json.dumps(MICRO), "--dst", str(tmp_path / "out")]
        return run_command(*arguments)

    return run


def test_half_precision_safetensors_become_a_checkpoint(tmp_path, convert):
    state = micro_state(np.float16)
    path = tmp_path / "model_fp16.safetensors"
    save_file(state, path)
    assert convert(path) == (0, "")
    params, metadata = load_params(tmp_path / "out")
    expected = from_torch("lgm", state, variant="big", **MICRO)
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    note = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert note == metadata
    assert note == {
        "model": {
            "name": "lgm",
            "variant": "big",
            "dtype": "float32",
            "overrides": {k: list(v) for k, v in MICRO.items()},
        },
        "data": lgm.DATA,
        "source": "model_fp16.safetensors",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": note["licence"],
    }
    assert "MIT" in note["licence"]
    code, line = convert(path)  # again, into the same folder
    assert code == 2
    assert line == (
        f"convert: {tmp_path / 'out'}: exists and is not an empty folder; choose "
        "another\n"
    )


def truncated(path):
    save_file({"conv.bias": np.zeros(14, np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-8])


def oversized(path):
    """A header that claims 4 TB of numbers."""
    count = 10**12
    header = {"x": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (truncated, "incomplete metadata, file not fully covered"),
        (oversized, "incomplete metadata, file not fully covered"),
        (lambda path: path.write_bytes(b""), "header too small"),
        (lambda path: path.write_bytes(b"not a tensor file"), "header too large"),
    ],
)
def test_damaged_safetensors_are_refused(tmp_path, convert, write, reason):
    path = tmp_path / "x.safetensors"
    write(path)
    code, line = convert(path)
    assert code == 2
    assert line == (
        f"convert: {path}: incomplete or damaged safetensors file (Error while "
        f"deserializing header: {reason}); download it again\n"
    )
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_fit_end_with_one_line(tmp_path, convert):
    path = tmp_path / "x.safetensors"
    state = micro_state()
    del state["conv.bias"]
    save_file(state, path)
    assert convert(path) == (
        2,
        "convert: 1 problem in the state dictionary: missing conv.bias (conv/bias)\n",
    )


def test_a_file_with_prefixed_names_is_converted(tmp_path, convert, caplog):
    path = tmp_path / "x.safetensors"
    state = micro_state()
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, path)
    assert convert(path)[0] == 0
    assert [record.getMessage() for record in caplog.records] == [
        "removed 'module.' from the names of all 182 tensors"
    ]
    params, _ = load_params(tmp_path / "out")
    expected = from_torch("lgm", state, variant="big", **MICRO)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="PyTorch is installed"
)
def test_a_pt_file_without_pytorch(tmp_path, convert):
    path = tmp_path / "model.pt"
    path.write_bytes(b"anything")
    assert convert(path) == (
        2,
        f"convert: {path}: reading it needs PyTorch, which is not installed: pip "
        "install torch, or convert a .safetensors file\n",
    )


def test_a_pt_file_with_pytorch(tmp_path, convert):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    state = micro_state()
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
    assert convert(path) == (0, "")
    params, _ = load_params(tmp_path / "out")
    expected = from_torch("lgm", state, variant="big", **MICRO)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_pt_file_that_holds_code_is_refused(tmp_path, convert):
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "model.pt", tmp_path / "trace"

    class Hostile:
        def __reduce__(self):
            return open, (str(trace), "w")

    torch.save({"conv.bias": Hostile()}, path)
    code, line = convert(path)
    assert code == 2
    assert line == (
        f"convert: {path}: torch.load(weights_only=True) refuses it "
        "(UnpicklingError); give a file that holds only tensors\n"
    )
    assert not trace.exists()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02")
    assert convert(path)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model", "gs"], "argument --model: invalid choice: 'gs'"),
        (["--variant", "huge"], "unknown lgm variant 'huge'; known: big, lrm, mini,"),
        (["--overrides", "{"], "--overrides: not JSON: Expecting property name"),
        (["--overrides", "[1]"], "--overrides: expected a JSON object, found [1]"),
        (["--overrides", '{"depth": 3}'], "unknown lgm override depth; known: anchor,"),
        (["--src", "x.bin"], "x.bin: expected a .safetensors, .pt or .pth file"),
        (["--src", "y.pt"], "y.pt: no such file"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate; see --help"),
    ],
)
def test_bad_usage_ends_with_one_line(
    tmp_path, monkeypatch, run_command, arguments, line
):
    monkeypatch.chdir(tmp_path)
    save_file({"conv.bias": np.zeros(14, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "x.bin").write_bytes(b"1")
    usual = ["--model", "lgm", "--src", "x.safetensors", "--dst", "out"]
    code, error = run_command(*usual, *arguments)
    assert code == 2
    assert error.startswith(f"convert: {line}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_key_tables_are_complete():
    assert {name: len(keys) for name, keys in KEYS.items()} == {
        "big": 376,
        "small": 344,
        "tiny": 244,
        "micro": 182,
    }
