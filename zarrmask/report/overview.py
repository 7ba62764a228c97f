"""`overview.png`: a run on one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from zarrmask.report.headline import headline, how, title
from zarrmask.report.levels import Z
from zarrmask.report.planes import Plane
from zarrmask.report.views import Views
from zarrmask.report.words import short
from zarrmask.storage.atomic import replace_file
from zarrmask.storage.place import Place

# From IBM's colour-blind safe palette; nothing is told apart by hue alone.
OUTLINE, AREA, EMPTY = "#ffb000", "#648fff", "#dc267f"

WIDTH, MARGIN, GAP, DPI = 1800, 70, 44, 100
SLICES_A_ROW = 3
HIGHEST = 640
"""A row of pictures is at most this high, pixels."""
LOWEST = 40
"""A section flatter than this is stretched, pixels."""


@dataclass(frozen=True)
class Box:
    """Where a picture goes, pixels from the top left."""

    left: float
    top: float
    width: float
    height: float


def write_overview(out: Place, record: Mapping[str, Any], views: Views) -> Place:
    """Draw `overview.png` of a finished run: slices, sections, the mask's area over z.

    Parameters
    ----------
    out : Place
        The run's folder.
    record : mapping
        The content of its `run.json`; what is missing is shown as a dash.
    views : Views
        What `read_views` gave of it.

    Returns
    -------
    Place
        The picture, 1800 pixels wide.
    """
    canvas = BytesIO()
    figure, quickly = _figure(views, out, record), {"compress_level": 3}  # a twentieth larger
    figure.savefig(canvas, format="png", dpi=DPI, pil_kwargs=quickly)
    path = out / "overview.png"
    replace_file(path, canvas.getvalue())
    return path


def _figure(views: Views, out: Place, record: Mapping[str, Any]) -> Figure:
    placed, below = _arranged(views)
    chart = Box(MARGIN + 20, below + 30, WIDTH - 2 * MARGIN, 250)
    height = chart.top + chart.height + 70
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    for text, top, size, weight in (
        (title(out, record), 22, 19, "bold"),
        (headline(views, record), 62, 12.5, "normal"),
        (how(record), 88, 11, "normal"),
        (_legend(views), 110, 11, "normal"),
    ):
        figure.text(
            (MARGIN - 20) / WIDTH,
            1 - top / height,
            _drawable(text, most=int(1900 / size)),
            fontsize=size,
            fontweight=weight,
            verticalalignment="top",
            color="#1a1a1a" if size > 12 else "#555555",
            parse_math=False,
        )
    for plane, box in placed:
        _draw_plane(_axes(figure, box, height), views, plane, box)
    _draw_area(_axes(figure, chart, height), views)
    return figure


def _axes(figure: Figure, box: Box, height: float) -> Axes:
    bottom = height - box.top - box.height
    return figure.add_axes(
        (box.left / WIDTH, bottom / height, box.width / WIDTH, box.height / height)
    )


def _arranged(views: Views) -> tuple[list[tuple[Plane, Box]], float]:
    """Give each picture its place; tell where the last one ends."""
    top = 172.0
    placed: list[tuple[Plane, Box]] = []
    groups = [
        list(views.slices[start : start + SLICES_A_ROW])
        for start in range(0, len(views.slices), SLICES_A_ROW)
    ]
    if views.shape[Z] > 1:
        groups += [[plane] for plane in views.sections] if views.lying else [list(views.sections)]
    for group in groups:
        columns = len(groups[0]) if group[0].axis == Z else len(group)
        boxes = _row(views, group, columns, top)
        placed += zip(group, boxes, strict=True)
        top = max(box.top + box.height for box in boxes) + 80
    return placed, top


def _row(views: Views, planes: list[Plane], columns: int, top: float) -> list[Box]:
    """Place pictures beside each other, all at one scale."""
    gap = GAP + 30
    free = WIDTH - 2 * MARGIN - gap * (columns - 1)
    sizes = [_extent(views, plane) for plane in planes]
    total = sum(width for _, width in sizes) * (columns / len(planes))
    scale = min(free / total, HIGHEST / max(height for height, _ in sizes))
    boxes, left = [], MARGIN + 20.0
    for height, width in sizes:
        boxes.append(Box(left, top, max(width * scale, LOWEST), max(height * scale, LOWEST)))
        left += boxes[-1].width + gap
    return boxes


def _extent(views: Views, plane: Plane) -> tuple[int, int]:
    """Size of a plane (rows, columns) in voxels."""
    z, y, x = views.shape
    rows, columns = ((y, x), (z, x), (z, y))[plane.axis]
    return (columns, rows) if plane.axis != Z and views.lying else (rows, columns)


def _draw_plane(axes: Axes, views: Views, plane: Plane, box: Box) -> None:
    height, width = _extent(views, plane)
    along_x, along_y = {0: ("x", "y"), 1: ("x", "z"), 2: ("y", "z")}[plane.axis]
    if plane.axis != Z and views.lying:
        along_x, along_y = along_y, along_x
    start_x, start_y = (views.first_z if name == "z" else 0 for name in (along_x, along_y))
    rows, columns = plane.image.shape
    axes.imshow(
        plane.image,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="antialiased",
        extent=(
            start_x,
            start_x + columns * plane.pixel,
            start_y + rows * plane.pixel,
            start_y,
        ),
    )
    lines = [np.concatenate([line, line[:1]]) * plane.pixel for line in plane.outlines]
    lines = [line + np.array([start_x, start_y]) for line in lines]
    # Dark beneath, so that the line shows on bright sheets as well.
    axes.add_collection(LineCollection(lines, colors="black", linewidths=2.8, alpha=0.5))
    axes.add_collection(LineCollection(lines, colors=OUTLINE, linewidths=1.5))
    axes.set_xlim(start_x, start_x + width)
    axes.set_ylim(start_y + height, start_y)
    stretched = max(
        box.height / box.width * width / height, box.width / box.height * height / width
    )
    axes.set_aspect("auto" if stretched > 1.05 else "equal", anchor="NW")
    note = f"   ({along_y} drawn {stretched:.0f} times too large)" if stretched > 1.5 else ""
    axes.set_title(views.depicts(plane) + note, loc="left", fontsize=12, pad=6)
    axes.set_xlabel("slice z" if along_x == "z" else f"{along_x}, voxels", labelpad=2)
    axes.set_ylabel("slice z" if along_y == "z" else f"{along_y}, voxels", labelpad=2)
    axes.tick_params(labelsize=9, colors="#555555")
    axes.locator_params(axis="x", nbins=max(2, min(9, int(box.width / 90))), integer=True)
    axes.locator_params(axis="y", nbins=max(1, min(7, int(box.height / 50))), integer=True)


def _draw_area(axes: Axes, views: Views) -> None:
    unit, name = views.area_unit
    edges = views.first_z + views.survey.edges
    axes.stairs(views.survey.area * unit, edges, fill=True, color=AREA, alpha=0.25)
    axes.stairs(views.survey.area * unit, edges, color=AREA, linewidth=1.6, label="mask")
    keyframes = views.keyframes
    found = keyframes.count > 0
    axes.plot(
        keyframes.z[found] + 0.5,
        keyframes.area[found] * unit,
        linestyle="none",
        marker=".",
        color="#26418f",
        markersize=5,
        label="keyframe: area as detected",
    )
    axes.plot(
        keyframes.z + 0.5,
        np.zeros(len(keyframes.z)),
        linestyle="none",
        marker="|",
        color="#555555",
        markersize=9,
        label="keyframe",
        clip_on=False,
        zorder=3,
    )
    if not found.all():
        axes.plot(
            keyframes.z[~found] + 0.5,
            np.zeros(int((~found).sum())),
            linestyle="none",
            marker="v",
            color=EMPTY,
            markersize=9,
            label="keyframe without detection",
            clip_on=False,
            zorder=3,
        )
    axes.set_xlim(views.first_z, views.stop_z)
    axes.set_ylim(bottom=0)
    if not views.survey.area.any() and not keyframes.area.any():
        axes.set_ylim(0, 1)
    axes.locator_params(axis="x", integer=True, nbins=18)
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set_xlabel("slice z")
    axes.set_ylabel(f"mask area, {name}")
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.tick_params(labelsize=9, colors="#555555")
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Mask area over z", loc="left", fontsize=12, pad=8)
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=10, borderpad=0
    )


def _legend(views: Views) -> str:
    grey = "the masked stack (no volume here)" if views.from_masked else "the stack"
    pixels = {plane.pixel for plane in views.slices}
    side = (
        f" A pixel of a slice stands for {max(pixels):.3g} voxels each way."
        if max(pixels) > 1
        else ""
    )
    return f"Grey: {grey}. Orange line: the edge of the mask.{side}"


def _drawable(text: str, most: int) -> str:
    """Shorten a text to one line of glyphs that the font has."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    line = "".join(one if ord(one) in glyphs else "�" for one in text)
    return line if len(line) <= most else line[: most - 1] + "…"
