"""From a mask to polygons that any annotation tool opens, holes included."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.coco.region import Region
from zarrmask.masking.tracing import traced

AGREEMENT = 0.995
"""Least IoU of a simplified polygon, rasterised, with what it was drawn around."""
SIMPLER = 500
"""A polygon is first simplified by a pixel, or a part of its longer side, one of so many."""


def polygons_of(mask: NDArray, least: float = 0) -> list[list[float]]:
    """Draw a polygon around each connected piece of a mask.

    A COCO polygon has no holes. So a hole is joined to the line around it by a slit of no width,
    there and back, which covers no pixel: one polygon a piece, whatever tool opens it.

    Parameters
    ----------
    mask : (y, x)
        What is not 0 is inside; pixels that touch at a corner are connected.
    least : float
        Pixels; a piece of no more is left out, unless there is none larger.

    Returns
    -------
    list of list of float
        x and y in turn, pixels; the image's first pixel spans 0 to 1. As few points as keep an IoU
        of 0.995 with the piece; the line is a quarter of a pixel within its edge.

    Examples
    --------
    >>> polygons_of(np.array([[0, 1, 0], [0, 0, 0]]))
    [[1.25, 0.25, 1.25, 0.75, 1.75, 0.75, 1.75, 0.25]]
    """
    count, labels, found, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8))
    least = min(least, found[1:, cv2.CC_STAT_AREA].max(initial=0) - 1)
    polygons = []
    for label, (x, y, width, height, area) in zip(range(1, count), found[1:].tolist(), strict=True):
        if area <= least:
            continue
        piece = labels[y : y + height, x : x + width] == label
        polygons.append((_polygon(piece) + np.array([x, y])).ravel().tolist())
    return polygons


def _polygon(piece: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Draw the polygon (n, 2) of one connected piece."""
    lines, tree = traced(piece)
    outside = int(np.flatnonzero(tree[0, :, 3] < 0)[0])
    lines = [lines[outside], *lines[:outside], *lines[outside + 1 :]]
    whole = Region.of_mask(piece)
    tolerance = 2 * max(1, max(piece.shape) / SIMPLER)  # of the doubled pixels
    while tolerance >= 1:
        polygon = _simplified(lines, tolerance)
        if polygon is not None and _agree(whole, polygon):
            return polygon
        tolerance /= 2
    return _joined(lines)


def _simplified(lines: list[NDArray], tolerance: float) -> NDArray[np.float64] | None:
    """Take points out of the lines; those that are none then are left out, unless it is all."""
    simple = [cv2.approxPolyDP(line, tolerance, True) for line in lines]
    return _joined([line for line in simple if len(line) > 2]) if len(simple[0]) > 2 else None


def _joined(lines: list[NDArray]) -> NDArray[np.float64]:
    """Join the lines around holes to the one around all: each by its leftmost point.

    To what is nearest to that: the nearest of all pairs of points would take memory by the square
    of a long line. A slit covers no pixel wherever it lies. From left to right, so that it is
    short.
    """
    ring, *holes = (line[:, 0, :].astype(np.int64) for line in lines)
    for hole in sorted(holes, key=lambda line: int(line[:, 0].min())):
        first = int(hole[:, 0].argmin())
        at = int(((ring - hole[first]) ** 2).sum(-1).argmin())
        there = np.concatenate([hole[first:], hole[: first + 1]])
        ring = np.concatenate([ring[: at + 1], there, ring[at:]])
    return (ring + 0.5) / 2


def _agree(whole: Region, polygon: NDArray[np.float64]) -> bool:
    """Whether a polygon, rasterised, is nearly what it was drawn around."""
    drawn = Region.of_polygon(polygon.ravel().tolist(), whole.height, whole.width)
    both = whole.area + drawn.area - Region.of_union([whole, drawn], *_shape(whole)).area
    return both >= AGREEMENT * (whole.area + drawn.area - both)


def _shape(region: Region) -> tuple[int, int]:
    return region.height, region.width
