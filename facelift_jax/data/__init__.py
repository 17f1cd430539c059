"""Files to NumPy batches; no device code.

One scene's way, in reading order: `sources` (a scene and its files), `transforms` (a
scene to an example), `pipeline` (examples to batches). Where scenes come from: `rodent`
makes them; `preparation` turns a recording into them.
"""
