"""One line of metrics: from the measurements of several steps to numbers and words."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from facelift_jax.training.collapse_monitor import MIN_STEPS

COUNTS = ("dropped", "is_skipped", "is_over_norm")


def summarize(
    window: Sequence[tuple[int, Mapping[str, jax.Array]]],
) -> tuple[dict[str, float], list[int]]:
    """Means over the steps since the last line, and the steps that were not finite.

    `train/dropped`, `train/skipped` and `train/over_norm` are counts. Steps that were
    not finite are left out of the means, unless there are no others.
    `monitor/not_taken` is the share of steps that changed no parameter; it is left out
    for fewer than `MIN_STEPS` steps.
    """
    rows = [(step, jax.device_get(values)) for step, values in window]
    skipped = [step for step, row in rows if row["is_skipped"]]
    finite = [row for step, row in rows if step not in skipped] or [rows[-1][1]]
    line = {
        name if "/" in name else f"train/{name}": float(
            np.mean([row[name] for row in finite])
        )
        for name in rows[0][1]
        if name not in COUNTS
    }
    line["train/dropped"] = int(sum(row["dropped"] for _, row in rows))
    line["train/skipped"] = len(skipped)
    line["train/over_norm"] = int(sum(row["is_over_norm"] for _, row in rows))
    if len(rows) >= MIN_STEPS:
        not_taken = line["train/skipped"] + line["train/over_norm"]
        line["monitor/not_taken"] = not_taken / len(rows)
    return line, skipped


def progress_text(line: Mapping[str, float]) -> str:
    """The most important metrics of a line, for the terminal."""
    words = [f"loss {line['train/total']:.4f}"]
    if "gap" in line:
        inputs, held_out = line["inputs/psnr_fg"], line["held_out/psnr_fg"]
        words.append(f"psnr_fg inputs {inputs:.2f} held-out {held_out:.2f} dB")
        words.append(f"held-out iou {line['held_out/iou']:.3f}")
    for name, reason in (("skipped", "not finite"), ("over_norm", "over skip_norm")):
        if line[f"train/{name}"]:
            words.append(f"{line[f'train/{name}']} steps not taken: {reason}")
    return "  ".join(words)
