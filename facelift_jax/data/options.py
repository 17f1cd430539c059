"""How scenes become examples: every choice of the data pipeline, in one place."""

import dataclasses

RIG_FRAMES = ("first_camera", "world")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How scenes become examples.

    Attributes:
      input_size: side of the network's pictures, pixels.
      target_size: side of the pictures compared with renderings, pixels.
      num_inputs: views the network sees.
      input_views: positions of the views inputs are taken from; None: the flagged
        views, or, where a scene flags nothing, `num_inputs` views evenly spaced in
        stored order.
      num_targets: views a training example is compared with.
      min_held_out: how many of those, at least, are not inputs.
      max_angle: degrees, seen from the rig's centre, that a training example's held-out
        target may be away from the nearest input; 180: anywhere.
      eval_targets: most held-out views an evaluated scene is judged from.
      background: RGB in [0, 1] that pictures are composited on.
      radius: mean distance of the input cameras from the rig's centre, world units.
      frame: "first_camera" gives the world the axes of input camera 0 (x right, y up,
        z towards the camera); "world" keeps the stored axes.
      grid_distortion: probability of LGM's distortion of the inputs but the first.
      camera_jitter: probability of LGM's jitter of the input poses but the first.
      bad_scenes_allowed: scenes that may be left out because they cannot be read; each
        is counted and named in the log, and one more ends the run.
      violations_allowed: scenes that may be used although they fail the data checks;
        each is named in the log and in the run's record.
    """

    input_size: int = 256
    target_size: int = 256
    num_inputs: int = 6
    input_views: tuple[int, ...] | None = None
    num_targets: int = 8
    min_held_out: int = 4
    max_angle: float = 180.0
    eval_targets: int = 12
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)
    radius: float = 1.5
    frame: str = "first_camera"
    grid_distortion: float = 0.0
    camera_jitter: float = 0.0
    bad_scenes_allowed: int = 0
    violations_allowed: int = 0

    def __post_init__(self) -> None:
        least = {"input_size": 1, "target_size": 1, "num_inputs": 1, "num_targets": 1}
        least |= {"min_held_out": 0, "eval_targets": 1, "bad_scenes_allowed": 0}
        least |= {"violations_allowed": 0}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(
                    f"{name} must be at least {lowest}, found {getattr(self, name)}"
                )
        if self.frame not in RIG_FRAMES:
            raise ValueError(f"frame must be one of {RIG_FRAMES}, found {self.frame!r}")
        if not 0 < self.max_angle <= 180:
            raise ValueError(f"max_angle is in (0, 180], found {self.max_angle}")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, found {self.radius}")
        if self.min_held_out > self.num_targets:
            raise ValueError(
                f"min_held_out={self.min_held_out} of num_targets={self.num_targets}: "
                "ask for at least as many targets"
            )
        if not (
            len(self.background) == 3 and all(0 <= c <= 1 for c in self.background)
        ):
            raise ValueError(
                f"background must be RGB in [0, 1], found {self.background}"
            )
        for name in ("grid_distortion", "camera_jitter"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is a probability, found {getattr(self, name)}"
                )
