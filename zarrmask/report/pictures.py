"""Pictures as the page holds them: JPEGs and outlines of no more than so many bytes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from zarrmask.report.planes import Outline, Plane
from zarrmask.report.views import Views
from zarrmask.report.words import short

QUALITIES = (88, 80, 70, 58, 45)
"""Of JPEGs, the best that is small enough; else the picture is made smaller, too."""
OUTLINE = 6_000
"""Characters of an outline, at most."""


@dataclass(frozen=True)
class Size:
    """What a picture may take: pixels of its longer side, bytes of its JPEG."""

    pixels: int
    most: int


FRAME = Size(640, 72_000)
SLICE = Size(420, 40_000)
SUSPECT = Size(480, 44_000)
SECTION = Size(2_000, 600_000)


@dataclass(frozen=True)
class Picture:
    """A plane as the template shows it; outlines are SVG paths in a box of `width` by `height`."""

    title: str
    alt: str
    data: str
    width: int
    height: int
    outline: str
    found: str
    bar: Bar


@dataclass(frozen=True)
class Bar:
    """A scale bar: how much of the picture's width it takes, and what that is."""

    percent: float
    label: str


def picture(views: Views, plane: Plane, size: Size) -> Picture:
    """Encode a plane."""
    height, width = plane.image.shape
    kind = "Slice" if plane.axis == 0 else "Section"
    shows = "with the outline of the mask" if plane.outlines else "where the mask is empty"
    return Picture(
        title=views.depicts(plane),
        alt=f"{kind} {views.depicts(plane)} of the scan {shows}",
        data=b64encode(jpeg(plane.image, size)).decode("ascii"),
        width=width,
        height=height,
        outline=svg_path(plane.outlines),
        found=svg_path(plane.found),
        bar=_bar(width * plane.pixel, views.voxel_size_um),
    )


def jpeg(image: NDArray[np.uint8], size: Size) -> bytes:
    """Encode a grey picture (h, w) in no more pixels and bytes than it may take."""
    pixels = size.pixels
    while True:
        factor = max(1.0, max(image.shape) / pixels)
        height, width = (max(1, round(side / factor)) for side in image.shape)
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        for quality in QUALITIES:
            encoded = bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])
            if len(encoded) <= size.most:
                return encoded
        pixels = max(height, width) // 2


def svg_path(lines: Sequence[Outline]) -> str:
    """Write closed lines as an SVG path, coarser where that would be long.

    Examples
    --------
    >>> svg_path([np.array([[0.25, 0.5], [2, 0.5], [2, 3]], np.float32)])
    'M0.2,0.5L2,0.5L2,3Z'
    """
    coarse = 0.5
    while len(path := "".join(_closed(line) for line in lines)) > OUTLINE:
        coarser = (cv2.approxPolyDP(line[:, None], coarse, True)[:, 0] for line in lines)
        lines = [line for line in coarser if len(line) > 2]
        coarse *= 2
    return path


def _closed(line: Outline) -> str:
    return "M" + "L".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in line.tolist()) + "Z"


def _bar(voxels: float, voxel_size_um: float | None) -> Bar:
    """Choose a round length of about a quarter of a picture's width."""
    length, unit = (voxels, "voxels") if voxel_size_um is None else (voxels * voxel_size_um, "µm")
    if voxel_size_um is not None and length >= 4000:
        length, unit = length / 1000, "mm"
    ticks = MaxNLocator(4).tick_values(0, length)
    chosen = float(ticks[1] - ticks[0])
    return Bar(round(100 * chosen / length, 2), f"{short(chosen)} {unit}")
