"""The benchmark commands run, at a size for two cores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_renderers_benchmark_prints_a_table_and_writes_json(tmp_path):
    out = tmp_path / "render.json"
    words = [
        "benchmarks.render",
        "smoke",
        "--interpret",
        "--stages",
        "--repeats",
        "1",
        "--out",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *words, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(out.read_text())["smoke"]
    assert row["is_finite"]
    assert row["dropped"] == 0
    # every listed entry was emitted, every read one listed
    assert row["entries"] >= row["entries_slice"] >= row["entries_kept"] > 0
    assert row["entries_kept"] >= row["entries_read"] > 0
    for figure in ("forward_ms", "both_ms", "blend_ms", "differentiate_ms"):
        assert row[figure] > 0
        assert figure in done.stdout
