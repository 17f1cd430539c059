"""Run directories of another format version are refused; parameters stay readable."""

import grain
import numpy as np
import pytest

from facelift_jax.builders import restore
from facelift_jax.checkpoints import checkpoint
from facelift_jax.checkpoints.run_format import format_fields, require_run_format

PARAMS = {"a": np.ones(2, np.float32)}
STATE = {"params": PARAMS}


def save_run(directory, metadata):
    """A run directory with one checkpoint of a training run."""
    checkpoint.save_checkpoint(
        directory / "checkpoints",
        3,
        STATE,
        metadata=metadata,
        keep=1,
        data_iterator=iter(grain.MapDataset.range(4).to_iter_dataset()),
    )
    return directory


def test_a_run_of_version_0_1_0_is_refused_in_one_line(tmp_path):
    """Its metadata is a config without a format version."""
    run = save_run(tmp_path / "run", {"model": {"name": "lgm"}, "run": {"lpips": ""}})
    for directory in (run, run / "checkpoints"):
        with pytest.raises(ValueError) as error:  # noqa: PT011  (the line is compared)
            restore(str(directory), 1)
        assert str(error.value) == (
            f"{directory}: a run directory of format 1, written by facelift_jax 0.1.0; "
            "this version needs format 2: use facelift_jax 0.1.0 for it, or start a "
            f"new run from its weights with --config.run.init_from={directory}"
        )
    params, _ = checkpoint.init_from(run, PARAMS)
    np.testing.assert_array_equal(params["a"], PARAMS["a"])


def test_a_run_of_this_version_passes(tmp_path):
    metadata = format_fields()
    require_run_format(save_run(tmp_path, metadata), metadata)


def test_parameters_alone_pass_whoever_wrote_them(tmp_path):
    """Converted weights, and adapters that an older version merged."""
    checkpoint.save_params(tmp_path / "weights", PARAMS, {"model": {"name": "lgm"}})
    require_run_format(tmp_path / "weights", {"model": {"name": "lgm"}})
