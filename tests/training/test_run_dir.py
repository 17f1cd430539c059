"""The run directory: its files, what it refuses, and the lines of its metrics."""

import json
import math
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import facelift_jax
from facelift_jax.training import run_dir

CONFIG = {
    "model": {"name": "lgm", "sizes": (1, 2)},
    "optim": {"learning_rate": 4e-4},
    "run": {"num_steps": 10, "keep": 2},
}


def read(path):
    return json.loads(path.read_text())


# The directory


def test_a_new_run(tmp_path):
    run = tmp_path / "runs/x"
    assert run_dir.open_run(run, CONFIG) == []
    assert read(run / "config.json")["model"] == {"name": "lgm", "sizes": [1, 2]}
    source = read(run / "source.json")
    assert source["program"] == "facelift_jax"
    assert source["format_version"] == 2
    assert source["written_by"] == f"facelift_jax {facelift_jax.__version__}"
    assert len(read(run / "source.json")["revisions"]) == 1


def test_reopening_the_same_run(tmp_path):
    run_dir.open_run(tmp_path, CONFIG)
    assert run_dir.open_run(tmp_path, CONFIG) == []
    assert len(read(tmp_path / "source.json")["revisions"]) == 1


def test_another_config_is_refused(tmp_path):
    run_dir.open_run(tmp_path, CONFIG)
    changed = CONFIG | {"optim": {"learning_rate": 1e-4, "decay": "all"}}
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        run_dir.open_run(tmp_path, changed)
    assert str(error.value) == (
        f'{tmp_path}: started with another config: optim.decay was absent, is "all"; '
        "optim.learning_rate was 0.0004, is 0.0001: choose another --workdir"
    )
    assert read(tmp_path / "config.json")["optim"] == CONFIG["optim"]


def test_allowed_changes_are_reported(tmp_path):
    run_dir.open_run(tmp_path, CONFIG)
    changed = CONFIG | {"run": {"num_steps": 10, "keep": 3}}
    changes = run_dir.open_run(tmp_path, changed, may_change=[r"run\.keep"])
    assert changes == ["run.keep was 2, is 3"]
    assert read(tmp_path / "config.json")["run"]["keep"] == 3


def test_another_revision_is_reported_and_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(run_dir, "source_revision", lambda: "aaa")
    run_dir.open_run(tmp_path, CONFIG)
    monkeypatch.setattr(run_dir, "source_revision", lambda: "bbb")
    assert run_dir.open_run(tmp_path, CONFIG) == ["source: aaa is now bbb"]
    assert read(tmp_path / "source.json")["revisions"] == ["aaa", "bbb"]


@pytest.mark.parametrize("name", ["thesis.tex", "source.json", "config.json"])
def test_a_directory_with_other_contents_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
        run_dir.open_run(tmp_path, CONFIG)
    assert str(error.value) == (
        f"{tmp_path}: exists and is not a run directory: choose another --workdir or "
        "empty it"
    )
    assert os.listdir(tmp_path) == [name]


def test_a_file_is_not_a_directory(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(ValueError, match="x: not a directory: choose another"):
        run_dir.open_run(tmp_path / "x", CONFIG)


def test_a_run_of_another_format_is_refused(tmp_path):
    """Version 0.1.0 wrote no format version; later ones write their own name."""
    run_dir.open_run(tmp_path, CONFIG)
    old = {"program": "facelift_jax", "revisions": [None]}
    new = old | {"format_version": 3, "written_by": "facelift_jax 0.9.0"}
    for source, version, writer in ((old, 1, "0.1.0"), (new, 3, "0.9.0")):
        (tmp_path / "source.json").write_text(json.dumps(source))
        with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
            run_dir.open_run(tmp_path, CONFIG)
        writer = f"facelift_jax {writer}"
        assert str(error.value) == (
            f"{tmp_path}: a run directory of format {version}, written by {writer}; "
            f"this version needs format 2: use {writer} for it, or start a new run "
            f"from its weights with --config.run.init_from={tmp_path}"
        )
        assert read(tmp_path / "source.json") == source


@pytest.mark.parametrize("kept", [("source.json.partial",), ("source.json",)])
def test_a_start_that_was_killed_can_be_reopened(tmp_path, kept):
    run_dir.open_run(tmp_path, CONFIG)
    shutil.copy(tmp_path / "source.json", tmp_path / "source.json.partial")
    for path in tmp_path.iterdir():
        if path.name not in kept:
            path.unlink()
    assert run_dir.open_run(tmp_path, CONFIG) == []
    assert read(tmp_path / "config.json")["run"] == CONFIG["run"]


def test_the_completion_marker(tmp_path):
    run_dir.mark_complete(tmp_path, {"step": 10})
    assert read(tmp_path / "complete.json") == {"step": 10}


# Metrics


def test_metrics_are_lines_of_json(tmp_path):
    run_dir.append_metrics(tmp_path, 1, {"train/loss": 0.5, "n": np.int32(3)})
    values = {"train/loss": jnp.float32(0.25), "ok": np.bool_(True)}
    run_dir.append_metrics(tmp_path, 5, values)
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "train/loss": 0.5, "n": 3}\n'
        '{"step": 5, "train/loss": 0.25, "ok": true}\n'
    )
    assert run_dir.read_metrics(tmp_path)[1]["train/loss"] == 0.25


def test_nonfinite_values_are_null_and_named(tmp_path):
    values = {"a": math.nan, "b": np.float32(-np.inf), "c": 1.0}
    run_dir.append_metrics(tmp_path, 1, values)
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "step": 1,
        "a": None,
        "b": None,
        "c": 1.0,
        "nonfinite": {"a": "nan", "b": "-inf"},
    }


def test_steps_ascend(tmp_path):
    run_dir.append_metrics(tmp_path, 5, {})
    with pytest.raises(ValueError, match="step 5 after step 5: steps must ascend"):
        run_dir.append_metrics(tmp_path, 5, {})


def test_resuming_removes_later_lines(tmp_path):
    for step in (10, 20, 30, 40):
        run_dir.append_metrics(tmp_path, step, {"loss": 1 / step})
    first = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    assert run_dir.cut_metrics(tmp_path, 25) == 2
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(first)
    assert run_dir.cut_metrics(tmp_path, 25) == 0
    run_dir.append_metrics(tmp_path, 30, {"loss": 0.5})
    assert [line["step"] for line in run_dir.read_metrics(tmp_path)] == [10, 20, 30]
    assert run_dir.cut_metrics(tmp_path, 0) == 3
    assert run_dir.read_metrics(tmp_path) == []
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_an_incomplete_last_line_is_removed(tmp_path):
    run_dir.append_metrics(tmp_path, 10, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    assert [line["step"] for line in run_dir.read_metrics(tmp_path)] == [10]
    assert run_dir.cut_metrics(tmp_path, 20) == 1
    run_dir.append_metrics(tmp_path, 20, {"loss": 1.0})
    assert [line["step"] for line in run_dir.read_metrics(tmp_path)] == [10, 20]


def test_no_metrics_yet(tmp_path):
    assert run_dir.read_metrics(tmp_path) == []
    assert run_dir.cut_metrics(tmp_path, 5) == 0


@pytest.mark.parametrize("line", ["{", "3", '{"loss": 1}', "[]", '{"step": null}'])
def test_other_lines_are_refused(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match="line 2 is not a JSON object with a step"):
        run_dir.read_metrics(tmp_path)
