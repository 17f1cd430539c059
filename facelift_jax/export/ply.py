"""Gaussians to 3DGS PLY files and back."""

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import plyfile
from jaxtyping import Bool, Float

from facelift_jax.geometry.numerics import SH_C0
from facelift_jax.io import atomic
from facelift_jax.structs import Gaussians, check

MIN_OPACITY = 0.005  # Gaussians below it are not written (LGM)
OPACITY_CLAMP = 1e-6  # opacities are clamped to [1e-6, 1 - 1e-6] (LGM)
SCALE_FLOOR = 1e-8  # added before the logarithm (LGM)
MAX_HEADER_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which Gaussians a file keeps.

    Attributes:
      min_opacity: Gaussians with a lower opacity are left out.
      max_scale: Gaussians whose longest axis is at least this long (world units) are
        left out if z <= 0, the lower half of a world whose z axis points up. None: no
        limit.
      floater: Gaussians with |x| > floater, |y| > floater and z < -floater are left
        out; they are in the corners below an object. None: no limit.
      box: half sides of a box around the origin; Gaussians outside are left out. None:
        no limit.
    """

    min_opacity: float = MIN_OPACITY
    max_scale: float | None = None
    floater: float | None = None
    box: tuple[float, float, float] | None = None

    def keep(self, gaussians: Gaussians) -> Bool[np.ndarray, "n"]:
        """Whether each of the Gaussians [n] is kept."""
        x, y, z = np.asarray(gaussians.means).T
        keep = np.asarray(gaussians.opacities) >= self.min_opacity
        if self.max_scale is not None:
            keep &= (np.asarray(gaussians.scales).max(-1) < self.max_scale) | (z > 0)
        if self.floater is not None:
            is_corner = (abs(x) > self.floater) & (abs(y) > self.floater)
            keep &= ~(is_corner & (z < -self.floater))
        if self.box is not None:
            inside = [
                abs(v) <= side for v, side in zip((x, y, z), self.box, strict=True)
            ]
            keep &= np.all(inside, axis=0)
        return keep

    def describe(self) -> str:
        """Which Gaussians are left out, for logs and files."""
        parts = [f"opacity < {self.min_opacity}"]
        if self.max_scale is not None:
            parts.append(f"an axis >= {self.max_scale} where z <= 0")
        if self.floater is not None:
            parts.append(f"|x|, |y| > {self.floater} and z < -{self.floater}")
        if self.box is not None:
            parts.append(f"outside the box of half sides {self.box}")
        return " or ".join(parts)


FILTERS = {
    "opacity": Filter(),
    # FaceLift's inference script and its web app, for heads at its scale with z up
    "facelift": Filter(0.04, max_scale=0.1, floater=0.6, box=(0.91, 0.91, 1.0)),
    "facelift_app": Filter(0.04, max_scale=0.2, floater=0.75, box=(0.91, 0.91, 1.0)),
}

# layout -> its comment in the file
LAYOUTS = {
    "lgm": "rot (w, x, y, z)",
    "facelift": "rot (w, x, y, z) as rendered; FaceLift's files have it unnormalized",
}
_NUM_COEFFICIENTS = 16  # per channel in FaceLift's layout: harmonics of degree 3

_GEOMETRY = ("x", "y", "z")
_BYTE_COLOR = ("red", "green", "blue")
_COLOR = ("f_dc_0", "f_dc_1", "f_dc_2")
_SHAPE = (
    "opacity",
    "scale_0",
    "scale_1",
    "scale_2",
    "rot_0",
    "rot_1",
    "rot_2",
    "rot_3",
)
_SIZES: dict[str, int] = dict.fromkeys(("char", "uchar", "int8", "uint8"), 1)
_SIZES |= dict.fromkeys(("short", "ushort", "int16", "uint16"), 2)
_SIZES |= dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4)
_SIZES |= dict.fromkeys(("double", "float64"), 8)


def write_ply(
    path: str | Path,
    gaussians: Gaussians,
    filter: Filter = FILTERS["opacity"],
    layout: str = "lgm",
) -> tuple[int, int]:
    """Writes Gaussians [n] as a 3DGS PLY; returns (number written, number left out).

    The fields are those of LGM, in its order: x y z, f_dc, f_rest (above degree 0),
    opacity, scale, rot; little-endian float32, before activation: opacity is a logit,
    scale a logarithm, rot is (w, x, y, z) as given. In the layout "facelift", that of
    FaceLift's programs, red, green, blue as bytes follow z, and f_rest always has
    degree 3, padded with zeros. FaceLift writes rot as its network predicts it; the
    networks of this package normalize it. Gaussians that `filter` does not keep are
    left out. The comments of the file state all this. The file is written atomically.

    Raises:
      ValueError: values that are not finite, a batch of Gaussians, an unknown layout.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; known: {', '.join(LAYOUTS)}")
    axes = check(gaussians, "gaussians")
    if axes["b"]:
        raise ValueError(f"{path}: expected one scene's Gaussians, found {axes['b']}")
    fields = _fields(gaussians, layout)
    is_finite = np.all([np.isfinite(column) for column in fields.values()], axis=0)
    num_bad = int((~is_finite).sum())
    if num_bad:
        raise ValueError(
            f"{path}: {num_bad} of {len(is_finite)} Gaussians hold NaN or infinity or "
            "scales below zero; nothing was written"
        )
    keep = filter.keep(gaussians)
    written, pruned = int(keep.sum()), int((~keep).sum())
    comments = [
        f"{pruned} of {len(keep)} Gaussians left out: {filter.describe()}",
        f"layout {layout}: {LAYOUTS[layout]}",
        f"opacity: logit of the value in [{OPACITY_CLAMP}, 1 - {OPACITY_CLAMP}]",
        f"scale: logarithm of the value + {SCALE_FLOOR}",
    ]
    table = np.rec.fromarrays(
        [column[keep] for column in fields.values()],
        dtype=[
            (name, column.dtype.newbyteorder("<")) for name, column in fields.items()
        ],
    )
    element = plyfile.PlyElement.describe(np.asarray(table), "vertex")
    content = io.BytesIO()
    plyfile.PlyData([element], byte_order="<", comments=comments).write(content)
    atomic.write_bytes(Path(path), content.getvalue())
    return written, pruned


def read_ply(path: str | Path) -> Gaussians:
    """Reads Gaussians [n] from a 3DGS PLY file, activated, as NumPy float32 arrays.

    Other fields, such as the normals that some programs write, are ignored.

    Raises:
      ValueError: the file is not a PLY, is shorter than its header says, lacks fields,
        or holds values that are not finite; one line.
    """
    path = Path(path)
    vertex = _read_vertices(path)
    fields = vertex.dtype.names or ()
    missing = [f for f in (*_GEOMETRY, *_COLOR, *_SHAPE) if f not in fields]
    if missing:
        raise ValueError(
            f"{path}: not a 3DGS PLY file: its vertices lack {', '.join(missing)}"
        )
    num_rest = sum(re.fullmatch(r"f_rest_\d+", field) is not None for field in fields)
    rest_names = _rest_names(num_rest)
    if num_rest not in (0, 9, 24, 45) or not set(rest_names) <= set(fields):
        raise ValueError(
            f"{path}: expected 0, 9, 24 or 45 fields f_rest_0, f_rest_1, ... for "
            f"harmonics of degree 0 to 3, found {num_rest}"
        )

    def columns(names: tuple[str, ...]) -> Float[np.ndarray, "n m"]:
        values = [vertex[name].astype(np.float32) for name in names]
        return np.stack(values, axis=-1)

    sh = columns(_COLOR)[:, None]
    if rest_names:
        rest = columns(rest_names).reshape(len(vertex), 3, num_rest // 3)
        sh = np.concatenate([sh, rest.transpose(0, 2, 1)], axis=1)
    with np.errstate(over="ignore"):  # an infinite scale is refused below
        gaussians = Gaussians(
            means=columns(_GEOMETRY),
            quats=columns(_SHAPE[4:]),
            scales=np.exp(columns(_SHAPE[1:4])),
            opacities=1 / (1 + np.exp(-columns(_SHAPE[:1])[:, 0])),
            sh=sh,
        )
    for name, values in vars(gaussians).items():
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {name} hold NaN or infinity")
    return gaussians


def _rest_names(count: int) -> tuple[str, ...]:
    """Names of the coefficients above degree 0: all of red, then green, then blue."""
    return tuple(f"f_rest_{i}" for i in range(count))


def _fields(gaussians: Gaussians, layout: str) -> dict[str, np.ndarray]:
    """The file's columns by name and in order, before activation."""
    means, quats, scales, opacities, sh = (
        np.asarray(getattr(gaussians, name), np.float32)
        for name in ("means", "quats", "scales", "opacities", "sh")
    )
    fields: dict[str, np.ndarray] = dict(zip(_GEOMETRY, means.T, strict=True))
    if layout == "facelift":
        color = np.clip(255 * (SH_C0 * sh[:, 0] + 0.5), 0, 255)
        color = np.nan_to_num(color).astype(np.uint8)  # NaN in f_dc is refused later
        fields |= zip(_BYTE_COLOR, color.T, strict=True)
        sh = np.pad(sh, ((0, 0), (0, _NUM_COEFFICIENTS - sh.shape[1]), (0, 0)))
    rest = sh[:, 1:].transpose(0, 2, 1).reshape(len(sh), 3 * (sh.shape[1] - 1))
    fields |= zip(_COLOR, sh[:, 0].T, strict=True)
    fields |= zip(_rest_names(rest.shape[1]), rest.T, strict=True)
    clamped = np.clip(opacities, OPACITY_CLAMP, 1 - OPACITY_CLAMP)
    logits = np.log(clamped / (1 - clamped))
    with np.errstate(invalid="ignore"):  # scales below zero are refused as NaN
        log_scales = np.log(scales + SCALE_FLOOR)
    return fields | dict(zip(_SHAPE, (logits, *log_scales.T, *quats.T), strict=True))


def _read_vertices(path: Path) -> np.ndarray:
    """The structured array of a PLY file's element "vertex"."""
    content = path.read_bytes()
    _check_header(path, content)
    try:
        ply = plyfile.PlyData.read(io.BytesIO(content))
    except (plyfile.PlyParseError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable PLY file: {reason}") from error
    if "vertex" not in ply:
        raise ValueError(f'{path}: not a 3DGS PLY file: it has no element "vertex"')
    return ply["vertex"].data


def _check_header(path: Path, content: bytes) -> None:
    """Refuses a header that declares more data than the file has, before reading it."""
    head = content[:MAX_HEADER_BYTES]
    end = re.search(rb"^end_header", head, re.MULTILINE)
    if not head.startswith(b"ply") or end is None:
        raise ValueError(
            f"{path}: not a PLY file: no PLY header in its first {MAX_HEADER_BYTES} "
            "bytes"
        )
    header = head[: end.start()]
    is_ascii = re.search(rb"^format ascii", header, re.MULTILINE) is not None
    num_bytes = len(content) - end.end()
    num_declared, count = 0, 0
    for line in header.decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["element"]:
            if len(words) != 3 or not words[2].isdigit():
                raise ValueError(f"{path}: PLY header: cannot read {line[:60]!r}")
            count = int(words[2])
        if words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in _SIZES:
                raise ValueError(f"{path}: PLY header: not a 3DGS field: {line[:60]!r}")
            num_declared += count * (2 if is_ascii else _SIZES[words[1]])
    if num_declared > num_bytes:
        raise ValueError(
            f"{path}: PLY header declares at least {num_declared} bytes but "
            f"{num_bytes} follow it; the file is truncated or damaged"
        )
