"""Prepares scenes from a calibrated multi-camera recording.

`calibration` and `lens` (cameras), `video` and `footage` (files), `virtual_cameras`
(rotated and undistorted images), `scenes` (the scene of one timestamp) and
`prepare_scenes` (the whole recording).
"""
