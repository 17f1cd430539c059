"""All options of the data pipeline."""

import dataclasses

RIG_FRAMES = ("first_camera", "world")


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Options for turning scenes into examples.

    Attributes:
      input_size: side of the input images, pixels.
      target_size: side of the target images, pixels.
      num_inputs: number of input views of the network.
      input_views: positions of the views that inputs are taken from; None: the views
        marked as inputs or, in scenes without marks, `num_inputs` views evenly spaced
        in stored order.
      num_targets: number of target views of a training example.
      min_held_out: minimum number of targets that are not inputs.
      max_angle: maximum angle of a training example's held-out target to the nearest
        input, seen from the center of the rig, degrees; 180: no limit.
      eval_targets: maximum number of held-out views of an evaluated scene.
      background: RGB in [0, 1] that images are composited on.
      radius: mean distance of the input cameras from the center of the rig, world
        units.
      frame: "first_camera": the world has the axes of input camera 0 (x right, y up, z
        towards the camera); "world": the stored axes.
      grid_distortion: probability that LGM's grid distortion is applied to all inputs
        except the first.
      camera_jitter: probability that LGM's jitter is applied to all input poses except
        the first.
      bad_scenes_allowed: number of unreadable scenes that may be skipped; each is
        counted and logged, and one more ends the run.
      violations_allowed: number of scenes that may be used although they fail the data
        checks; each is logged and recorded in the run directory.
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
        minimums = {
            "input_size": 1,
            "target_size": 1,
            "num_inputs": 1,
            "num_targets": 1,
        }
        minimums |= {"min_held_out": 0, "eval_targets": 1, "bad_scenes_allowed": 0}
        minimums |= {"violations_allowed": 0}
        for name, minimum in minimums.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"{name} must be at least {minimum}, found {getattr(self, name)}"
                )
        if self.frame not in RIG_FRAMES:
            raise ValueError(f"frame must be one of {RIG_FRAMES}, found {self.frame!r}")
        if not 0 < self.max_angle <= 180:
            raise ValueError(f"max_angle must be in (0, 180], found {self.max_angle}")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, found {self.radius}")
        if self.min_held_out > self.num_targets:
            raise ValueError(
                f"min_held_out={self.min_held_out} is more than "
                f"num_targets={self.num_targets}; reduce it or use more targets"
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
                    f"{name} must be a probability, found {getattr(self, name)}"
                )
