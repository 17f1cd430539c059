"""Evaluation: metrics of held-out views, the visual hull baseline, reports, images."""
