"""A lab's calibrated recording to scenes: calibration, footage, virtual cameras."""
