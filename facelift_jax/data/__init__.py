"""Scenes on disk to NumPy batches; no device code.

The path of one scene, in reading order: `formats` (its camera file), `scenes` (scenes
and sets of scenes), `view_selection`, `normalize`, `resize`, `augment`, `examples` (a
scene to an example) and `pipeline` (examples to batches). `mixture` opens and joins the
sets of a run, `pack` and `packed` write and read packed sets, `validation` checks sets.
Scenes come from `recordings` (real footage) or `rodent` (synthetic).
"""
