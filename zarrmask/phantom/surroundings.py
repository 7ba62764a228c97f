"""What lies round the papyrus: a case with pores, and the film it is wrapped in."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.phantom.noise import Array, Field, around, enlarge
from zarrmask.phantom.scroll import COLUMNS


def hull(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Convex hull of a mask, bool (h, w)."""
    rims, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros(mask.shape, np.uint8)
    if rims:
        cv2.fillConvexPoly(filled, cv2.convexHull(np.concatenate(rims)), 1)
    return filled.astype(bool)


def distance_outside(mask: NDArray[np.bool_]) -> Array:
    """Distance to a mask in pixels: 0 inside, far away where the mask is empty; float32 (h, w)."""
    if not mask.any():
        return np.full(mask.shape, np.float32(1e6))
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_3)
    return np.asarray(away, np.float32)


@dataclass(frozen=True)
class Case:
    """A holder; lengths are fractions of the slice's shorter side.

    Attributes
    ----------
    kind : str
        ``"fitted"`` (follows the scroll), ``"ring"``, ``"box"``, ``"clamp"`` (a ring with a wide
        mouth), ``"blocks"`` (pieces only) or ``"none"``.
    gap, thickness : float
        Air between scroll and case, and the wall.
    bumps : float
        How unlike the scroll's the wall's own outline is.
    slots, pieces : int
        Cuts through the wall; loose pieces farther out.
    rough : float
        Roughness of its rims.
    """

    kind: str = "fitted"
    gap: float = 0.02
    thickness: float = 0.12
    bumps: float = 0.03
    slots: int = 2
    pieces: int = 2
    rough: float = 0.3

    def draw(
        self, rng: np.random.Generator, away: Array, column: NDArray[np.int32]
    ) -> NDArray[np.uint8]:
        """Draw the case round a scroll whose hull is `away` pixels distant; uint8 0/255 (h, w)."""
        height, width = away.shape
        unit = min(height, width)
        drawn = np.zeros((height, width), np.uint8)
        if self.kind in ("fitted", "clamp"):
            inner = self._wall(rng, int(rng.integers(6, 24))) * unit
            wall = self._wall(rng, int(rng.integers(4, 12)), base=self.thickness) * unit
            inner = np.maximum(inner, 0)
            low, high = (
                inner[column],
                (inner + np.maximum(wall, 0.2 * self.thickness * unit))[column],
            )
            drawn[(away > low) & (away < high)] = 255
        elif self.kind == "ring":
            self._ring(rng, drawn, unit)
        elif self.kind == "box":
            self._box(rng, drawn)
        self._cut(rng, drawn, unit)
        for _ in range(self.pieces):
            self._piece(rng, drawn, unit)
        if self.rough > 0 and self.kind != "none":
            noise = rng.standard_normal((height // 2 + 1, width // 2 + 1), dtype=np.float32)
            noise = enlarge(np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8)), height, width)
            soft = cv2.GaussianBlur(drawn, (0, 0), 1.2).astype(np.float32)
            drawn = ((soft + noise * np.float32(255 * self.rough)) > 127).astype(np.uint8) * 255
            drawn = np.asarray(cv2.medianBlur(drawn, 3), np.uint8)
        return drawn

    def _wall(self, rng: np.random.Generator, knots: int, base: float | None = None) -> Array:
        """Distance of a rim over the angle: straight runs between random knots."""
        base = self.gap if base is None else base
        values = base + np.abs(rng.normal(0, self.bumps, knots)) * (rng.random(knots) < 0.7)
        if rng.random() < 0.5:
            return around(values.astype(np.float32), COLUMNS)
        places = np.sort(rng.uniform(0, COLUMNS, knots))
        return np.asarray(np.interp(np.arange(COLUMNS), places, values, period=COLUMNS), np.float32)

    def _ring(self, rng: np.random.Generator, drawn: NDArray[np.uint8], unit: int) -> None:
        """Draw an elliptic tube."""
        height, width = drawn.shape
        middle = (
            int(width * rng.uniform(0.4, 0.6)),
            int(height * rng.uniform(0.4, 0.6)),
        )
        wall = self.thickness * unit * rng.uniform(0.15, 1.2)
        outer = np.array([width, height]) * rng.uniform(0.42, 0.75)
        if rng.random() < 0.5:
            outer[:] = outer.min()
        turn = float(rng.uniform(0, 180))
        for axes, value in ((outer, 255), (outer - wall, 0)):
            size = (max(int(axes[0]), 1), max(int(axes[1]), 1))
            cv2.ellipse(drawn, middle, size, turn, 0, 360, value, cv2.FILLED)

    def _box(self, rng: np.random.Generator, drawn: NDArray[np.uint8]) -> None:
        """Draw a rectangular frame."""
        height, width = drawn.shape
        middle = (width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6))
        side = np.array([width, height]) * rng.uniform(0.85, 1.3)
        wall = self.thickness * min(height, width) * rng.uniform(0.3, 2.0)
        turn = float(rng.normal(0, 6)) if rng.random() < 0.7 else float(rng.uniform(0, 90))
        for sides, value in ((side, 255), (side - 2 * wall, 0)):
            corners = cv2.boxPoints((middle, (float(sides[0]), float(sides[1])), turn))
            cv2.fillPoly(drawn, [corners.astype(np.int32)], value)

    def _cut(self, rng: np.random.Generator, drawn: NDArray[np.uint8], unit: int) -> None:
        """Cut slots; a clamp gets one as wide as a mouth."""
        height, width = drawn.shape
        middle = np.array([width / 2, height / 2])
        for i in range(self.slots + (self.kind == "clamp")):
            angle = rng.uniform(0, 2 * np.pi)
            if rng.random() < 0.5:
                angle = round(angle / (np.pi / 2)) * np.pi / 2
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-along[1], along[0]])
            half = unit * rng.uniform(0.008, 0.06)
            if self.kind == "clamp" and i == 0:
                half = unit * rng.uniform(0.15, 0.5)
            start = middle + across * rng.normal(0, 0.08 * unit)
            end = start + along * 2 * max(height, width)
            quad = np.array(
                [
                    start - across * half,
                    start + across * half,
                    end + across * half,
                    end - across * half,
                ]
            )
            cv2.fillPoly(drawn, [quad.astype(np.int32)], 0)

    def _piece(self, rng: np.random.Generator, drawn: NDArray[np.uint8], unit: int) -> None:
        """Draw one loose piece near the border: a bar, a disc or a ragged polygon."""
        height, width = drawn.shape
        angle = rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(0.42, 0.62)
        middle = np.array(
            [width * (0.5 + reach * np.cos(angle)), height * (0.5 + reach * np.sin(angle))]
        )
        kind = rng.random()
        if kind < 0.5:
            sides = unit * np.array([rng.uniform(0.04, 0.2), rng.uniform(0.1, 0.9)])
            corners = cv2.boxPoints(
                (tuple(middle.tolist()), tuple(sides.tolist()), float(rng.uniform(0, 180)))
            )
            cv2.fillPoly(drawn, [corners.astype(np.int32)], 255)
        elif kind < 0.75:
            size = max(int(unit * rng.uniform(0.02, 0.14)), 1)
            thick = cv2.FILLED if rng.random() < 0.5 else max(1, int(size * rng.uniform(0.1, 0.5)))
            cv2.circle(drawn, (int(middle[0]), int(middle[1])), size, 255, thick)
        else:
            spokes = np.sort(rng.uniform(0, 2 * np.pi, 7))
            far = unit * rng.uniform(0.05, 0.25, 7)
            ring = middle + np.stack([far * np.cos(spokes), far * np.sin(spokes)], axis=1)
            cv2.fillPoly(drawn, [ring.astype(np.int32)], 255)


@dataclass(frozen=True)
class Pores:
    """Dark holes in the case, fixed in space; a seed for every stretch of slices.

    Attributes
    ----------
    seed : int
        Of their places.
    number : float
        Pores per slice and million pixels.
    radius : float
        Mean radius, pixels.
    """

    seed: int
    number: float
    radius: float

    def draw(self, z: int, height: int, width: int) -> NDArray[np.uint8]:
        """Draw the pores that slice `z` cuts; uint8 0 (hole) to 255 (solid), (h, w)."""
        solid = np.full((height, width), 255, np.uint8)
        stretch = max(int(4 * self.radius), 1)
        count = int(self.number * height * width * 1e-6)
        for part in (z // stretch - 1, z // stretch, z // stretch + 1):
            rng = np.random.default_rng([self.seed, part + 1])
            places = rng.random((count, 3)) * (stretch, height, width)
            sizes = self.radius * np.exp(0.45 * rng.standard_normal(count))
            rise = places[:, 0] + part * stretch - z
            cut = sizes**2 - rise**2
            for i in np.flatnonzero(cut > 0.04):
                middle = (int(places[i, 2] * 8), int(places[i, 1] * 8))
                cv2.circle(solid, middle, int(np.sqrt(cut[i]) * 8), 0, cv2.FILLED, cv2.LINE_AA, 3)
        return solid


@dataclass(frozen=True)
class Film:
    """One layer of wrapping film round the scroll's hull.

    Attributes
    ----------
    offset : Field
        Distance from the hull over the angle.
    lift : float
        Mean distance, fraction of the slice's shorter side.
    thickness : float
        Pixels.
    curls : tuple of (angle, size, turns)
        Loose loops: place in turns, size as a fraction of the shorter side.
    open : float
        Share of the way round that is missing.
    """

    offset: Field
    lift: float
    thickness: float
    curls: tuple[tuple[float, float, float], ...] = ()
    open: float = 0.0

    def draw(self, drawn: NDArray[np.uint8], away: Array, t: float) -> None:
        """Draw into `drawn` (uint8, h, w) along a line of equal distance to the hull."""
        height, width = away.shape
        unit = min(height, width)
        # Lines are found on a small grid: film is smooth, and the full grid may be large.
        scale = min(1.0, 400 / unit)
        small = cv2.resize(away, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        reach = self.lift * unit
        wander = self.offset.spread(t, *small.shape) * np.float32(0.6 * reach)
        inside = (small < np.maximum(reach + wander, 1.0)).astype(np.uint8)
        if not inside.any():
            return
        inside = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        lines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        line = max(lines, key=len)[:, 0].astype(np.float32) - 1
        line = self._smooth(line, 5) / np.float32(scale)
        keep = np.ones(len(line), bool)
        if self.open > 0:
            keep[: int(len(line) * self.open)] = False
        for place, size, turns in self.curls:
            self._curl(line, int(place * len(line)), size * unit, turns)
        thick = max(1, round(self.thickness))
        cv2.polylines(
            drawn, [np.round(line[keep] * 8).astype(np.int32)], False, 255, thick, cv2.LINE_AA, 3
        )

    @staticmethod
    def _smooth(line: Array, half: int) -> Array:
        kernel = np.ones(2 * half + 1, np.float32) / (2 * half + 1)
        ends = min(half, len(line) - 1)
        padded = np.concatenate([line[-ends:], line, line[:ends]]) if ends else line
        return np.stack(
            [np.convolve(padded[:, i], kernel, "same")[ends : ends + len(line)] for i in (0, 1)],
            axis=1,
        ).astype(np.float32)

    @staticmethod
    def _curl(line: Array, at: int, size: float, turns: float) -> None:
        """Bend a stretch of the line into loops, in place."""
        length = min(int(10 * turns * size**0.5) + 12, len(line) // 3)
        stretch = (at + np.arange(length)) % len(line)
        bell = np.sin(np.linspace(0, np.pi, length))
        way = np.linspace(0, 2 * np.pi * turns, length)
        line[stretch, 0] += (size * bell * np.sin(way)).astype(np.float32)
        line[stretch, 1] += (size * bell * np.cos(1.3 * way + at)).astype(np.float32)
