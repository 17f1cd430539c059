"""Evaluation refuses pictures that are not the network's."""

import functools

import jax
import numpy as np
import pytest

from facelift_jax import evaluate
from facelift_jax.data import rodent
from facelift_jax.data.sources import open_source
from facelift_jax.models import get_model
from facelift_jax.render import RenderConfig, render

SIZES = {
    "down_channels": (32, 32),
    "down_attention": (False, False),
    "up_channels": (32,),
    "up_attention": (False,),
}


def test_dropped_entries_end_an_evaluation(tmp_path):
    rodent.generate(tmp_path / "data", 1, 16, workers=1)
    source = open_source(tmp_path / "data")
    options = evaluate.data_options({"input_size": 16, "target_size": 16}, 1)
    model = get_model("lgm", "mini", **SIZES)
    inputs = next(evaluate.evaluation_batches(source, options, 1)).inputs
    params = model.init(jax.random.key(0), inputs)["params"]
    capped = functools.partial(
        render,
        background=np.ones(3, np.float32),
        config=RenderConfig(max_entries=16),
    )
    step = evaluate.make_eval_step(model, capped)
    with pytest.raises(
        ValueError,
        match=r"scene scene_000000: the renderer dropped \d+ list entries, so its",
    ):
        evaluate.evaluate(step, params, source, options)
