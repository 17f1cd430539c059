"""Check reports as text: a table of measurements, the reasons, and one summary line."""

from collections.abc import Callable, Sequence

from facelift_jax.data.validation.checks import SceneMeasurements, SceneReport

LEGEND = """\
coverage    share of the pixels that show the object: mean over the views, smallest
agreement   share of a view's rays that meet the masks of all others; of the worst view
in frame    number of views with the object in front of the camera and in the image
centroids   largest distance of a mask's centroid from the object's position, pixels
background  largest difference from the expected background, levels of 255"""


def _optional(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


COLUMNS: dict[str, Callable[[SceneMeasurements], str]] = {
    "views": lambda measured: str(measured.num_views),
    "pixels": lambda measured: f"{measured.width} x {measured.height}",
    "coverage": lambda measured: f"{measured.coverage:.3f}",
    "min": lambda measured: f"{measured.min_coverage:.3f}",
    "agreement": lambda measured: _optional(measured.agreement, ".3f"),
    "view": lambda measured: _optional(measured.worst_view, "d"),
    "in frame": lambda measured: _optional(measured.num_in_frame, "d"),
    "centroids": lambda measured: _optional(measured.centroid_error, ".1f"),
    "background": lambda measured: _optional(measured.background_error, ".1f"),
}


def table(reports: Sequence[SceneReport]) -> str:
    """The measurements of every scene, one row per scene, and a legend."""
    rows = [["scene", *COLUMNS, ""]]
    for report in reports:
        cells = ["-"] * len(COLUMNS)
        if report.measurements is not None:
            cells = [show(report.measurements) for show in COLUMNS.values()]
        rows.append([report.name, *cells, "FAIL" if report.problems else "ok"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    ]
    return "\n".join([*lines, LEGEND])


def reasons(reports: Sequence[SceneReport]) -> list[str]:
    """One line for every problem and every warning of every scene."""
    lines = []
    for report in reports:
        # the problem of an unreadable scene already contains its name
        name = f"scene {report.name}: " if report.measurements else ""
        lines += [f"{name}{problem}" for problem in report.problems]
        lines += [f"{name}(warning) {warning}" for warning in report.warnings]
    return lines


def summary(reports: Sequence[SceneReport], problems: Sequence[str]) -> str:
    """One line about all scenes; `problems` are those between scenes."""
    views = sum(r.measurements.num_views for r in reports if r.measurements)
    unreadable = sum(report.measurements is None for report in reports)
    failing = sum(bool(report.problems) for report in reports) - unreadable
    warned = sum(bool(report.warnings) for report in reports)
    counts = {
        "scenes that fail": failing,
        "scenes that cannot be read": unreadable,
        "problems between scenes": len(problems),
        "scenes with a warning": warned,
    }
    is_good = not (failing or unreadable or problems)
    result = "all pass" if is_good else "NOT all pass"
    details = ", ".join(f"{what}: {count}" for what, count in counts.items() if count)
    line = f"{len(reports):,} scenes, {views:,} views: {result} the data checks"
    return f"{line} ({details})" if details else line
