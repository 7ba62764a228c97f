"""The rolled papyrus: its outline, its wound sheets, and how it breaks at the ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import pi

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.phantom.noise import Array, Field, around, enlarge, smoothstep

COLUMNS = 2048  # samples of every function of the angle
FOLDS = 12  # folds a scroll may have at most
TAU = np.float32(2 * pi)


@dataclass(frozen=True)
class Look:
    """What a scroll is like; lengths are fractions of the scroll's half axes.

    Attributes
    ----------
    centre, axes : tuple of float
        Middle and half axes (x, y), as fractions of the slice's sides.
    turn : float
        Rotation of the section, radians.
    corner : float
        Exponent of the superellipse it starts from (2 an ellipse, more a rounded box).
    lobes : float
        Size of the outline's slow waves.
    folds : int
        Sharp folds of the outline, inward (notches) or outward (ridges).
    depth : float
        Largest depth of a fold.
    reach : float
        How far folds are felt inwards; small values let them die away soon.
    warp : float
        Displacement that makes the section no longer star-shaped.
    pitch : float
        Distance of two wraps as a fraction of the slice's shorter side.
    crumple : float
        Waviness of the sheets; near 1 they fold back on themselves.
    streaks : int
        Random thicknesses along one wrap.
    lamination, grain : float
        Weight of the wraps' own profile and of the random thickness along them.
    closeness, opening : float
        How tightly the sheets lie (mean) and how much that varies.
    gaps : int
        Wide gaps that run along the wraps.
    gape : float
        How wide these are deep inside, over the usual.
    inclusions : float
        Share of the section that holds bright crusts.
    mouth : float
        Opening of the C in radians, 0 for a closed section.
    hollow : float
        Radius of the C's empty core.
    broken : float
        0 whole, 1 nothing left; in between pieces.
    size : float
        Shrinks the papyrus, but not the whole section that film and case fit.
    """

    centre: tuple[float, float] = (0.5, 0.5)
    axes: tuple[float, float] = (0.4, 0.4)
    turn: float = 0.0
    corner: float = 2.0
    lobes: float = 0.06
    folds: int = 4
    depth: float = 0.2
    reach: float = 1.0
    warp: float = 0.06
    pitch: float = 0.008
    crumple: float = 0.3
    streaks: int = 400
    lamination: float = 0.5
    grain: float = 0.5
    closeness: float = 0.5
    opening: float = 0.5
    gaps: int = 2
    gape: float = 1.0
    inclusions: float = 0.02
    mouth: float = 0.0
    hollow: float = 0.0
    broken: float = 0.0
    size: float = 1.0


@dataclass(frozen=True)
class Section:
    """One drawn section, all of shape (h, w).

    Attributes
    ----------
    density : ndarray of float32
        Share of papyrus in each pixel, above 1 in crusts.
    inside : ndarray of bool
        Truth: papyrus and the air between its wraps.
    whole : ndarray of bool
        The section as it would be unbroken; film and case are made to fit it.
    angle : ndarray of intp
        Column of each pixel in a function of the angle (0 to `COLUMNS` - 1).
    """

    density: Array
    inside: NDArray[np.bool_]
    whole: NDArray[np.bool_]
    angle: NDArray[np.int32]


@dataclass
class Scroll:
    """A random scroll with the given look; `knots` places along z at which it differs."""

    rng: np.random.Generator
    look: Look
    knots: int = 1
    _fields: dict[str, Field] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        wraps = max(3.0, 0.9 * min(self.look.axes) / self.look.pitch)
        self._wraps = wraps
        rows = min(int(wraps * 3) + 4, 3000)
        mesh = int(self.rng.integers(5, 10))
        shapes: dict[str, tuple[int, ...]] = {
            "warp": (4, 4, 2),
            "bend": (mesh, mesh, 2),
            "waves": (7, 2),
            "folds": (FOLDS, 4),
            "crumple": (int(self.rng.integers(10, 28)),) * 2,
            "sheets": (rows, self.look.streaks),
            "opening": (int(self.rng.integers(4, 9)),) * 2,
            "ribbons": (int(self.rng.integers(8, 40)), int(self.rng.integers(6, 20))),
            "crusts": (int(self.rng.integers(10, 30)), int(self.rng.integers(20, 60))),
            "gaps": (6, 12),
            "edge": (int(self.rng.integers(60, 300)),),
            "break": (6, 6),
        }
        self._fields = {name: Field(self.rng, shape, self.knots) for name, shape in shapes.items()}
        # Where folds and gaps start does not drift at random but holds along the scroll.
        self._fold_places = self.rng.uniform(0, 2 * pi, FOLDS)
        self._fold_widths = self.rng.uniform(0.04, 0.35, FOLDS)
        self._fold_signs = np.where(self.rng.random(FOLDS) < 0.6, -1.0, 0.6)
        self._gap_places = self.rng.uniform(0.15, 0.97, 6)
        self._gap_widths = self.rng.uniform(0.004, 0.022, 6)
        self._mouth_at = float(self.rng.uniform(0, 2 * pi))

    def outline(self, t: float) -> tuple[Array, Array]:
        """Radius over the angle, with and without the folds; float32 of length `COLUMNS`."""
        look = self.look
        angle = np.arange(COLUMNS, dtype=np.float32) * (TAU / COLUMNS)
        n = look.corner
        smooth = (np.abs(np.cos(angle)) ** n + np.abs(np.sin(angle)) ** n) ** (-1.0 / n)
        waves = self._fields["waves"].at(t)
        lobes = np.zeros(COLUMNS, np.float32)
        for k, (a, b) in enumerate(waves, start=2):
            lobes += look.lobes * (a * np.cos(k * angle) + b * np.sin(k * angle)) / k
        smooth = smooth * (1 + 0.5 * lobes)
        folded = smooth * (1 + 0.7 * lobes)
        drift = self._fields["folds"].at(t)
        for i in range(min(look.folds, FOLDS)):
            place = self._fold_places[i] + 0.08 * float(drift[i, 0])
            width = self._fold_widths[i] * float(np.exp(0.25 * drift[i, 1]))
            depth = look.depth * min(abs(0.6 + 0.35 * float(drift[i, 2])), 1.4)
            away = np.abs((angle - place + pi) % (2 * pi) - pi)
            lean = np.where((angle - place + pi) % (2 * pi) > pi, 1.0, 1.6)
            folded = folded * (1 + self._fold_signs[i] * depth * np.exp(-away * lean / width))
        return np.asarray(folded, np.float32), np.asarray(smooth, np.float32)

    def section(self, t: float, height: int, width: int, look: Look | None = None) -> Section:
        """Draw the section at `t` (0 to 1 along the scroll) on a height x width grid.

        Parameters
        ----------
        look : Look, optional
            Stands in for the scroll's own where the ends differ: `mouth`, `hollow`, `broken`
            and `size`.
        """
        look, fields = look or self.look, self._fields
        x, y = self._plane(t, height, width)
        radius, angle = (np.asarray(part, np.float32) for part in cv2.cartToPolar(x, y))
        column = np.minimum((angle * (COLUMNS / TAU)).astype(np.int32), COLUMNS - 1)

        folded, smooth = self.outline(t)
        edge = around(fields["edge"].at(t), COLUMNS) * np.float32(0.006)
        folded_here, smooth_here = folded[column], smooth[column]
        first = radius / folded_here
        deep = np.clip(first, 0.0, 1.0) ** np.float32(look.reach)
        level = radius / (smooth_here + (folded_here - smooth_here) * deep)
        whole = level < 1.0
        if look.size < 1.0:
            level = level / np.float32(max(look.size, 1e-3))

        kept = level < 1.0 + edge[column]
        if look.mouth > 0:
            kept &= self._not_mouth(look, angle, level, t)
        if look.broken > 0:
            crack = fields["break"].spread(t, height, width)
            kept &= crack > np.float32(-2.6 + 5.2 * look.broken)
        if look.broken >= 1:
            kept[:] = False
        outward = level
        if look.mouth > 0 or look.broken > 0:
            outward = np.maximum(level, 1.0 - self._depth(kept))
        density = self._sheets(t, level, angle, outward)
        density *= kept
        return Section(density, traced(kept), whole, column)

    def _plane(self, t: float, height: int, width: int) -> tuple[Array, Array]:
        """Coordinates of each pixel in which the section is round, before its folds."""
        look, fields = self.look, self._fields
        cx, cy = look.centre[0] * width, look.centre[1] * height
        ax, ay = look.axes[0] * width, look.axes[1] * height
        rows = (np.arange(height, dtype=np.float32) + np.float32(0.5 - cy))[:, None]
        cols = (np.arange(width, dtype=np.float32) + np.float32(0.5 - cx))[None, :]
        c, s = np.float32(np.cos(look.turn)), np.float32(np.sin(look.turn))
        x = (cols * c + rows * s) / np.float32(ax)
        y = (rows * c - cols * s) / np.float32(ay)
        if look.warp > 0:
            shift = enlarge(np.float32(look.warp) * fields["warp"].at(t), height, width)
            shift += enlarge(np.float32(0.3 * look.warp) * fields["bend"].at(t), height, width)
            x += shift[..., 0]
            y += shift[..., 1]
        return np.asarray(x, np.float32), np.asarray(y, np.float32)

    def _not_mouth(self, look: Look, angle: Array, level: Array, t: float) -> NDArray[np.bool_]:
        """Where the section is not the open mouth and core of a C."""
        middle = np.float32(self._mouth_at + 0.5 * t)
        away = np.abs((angle - middle + np.float32(pi)) % TAU - np.float32(pi))
        core = np.float32(look.hollow)
        return np.asarray((level > core) & ((away > look.mouth / 2) | (level < core)))

    def _depth(self, kept: NDArray[np.bool_]) -> Array:
        """How far from air each pixel of what is kept lies, in half axes of the section."""
        height, width = kept.shape
        half = np.sqrt(self.look.axes[0] * width * self.look.axes[1] * height)
        depth = cv2.distanceTransform(kept.astype(np.uint8), cv2.DIST_L2, 3)
        return np.asarray(depth, np.float32) / np.float32(half)

    def _sheets(self, t: float, level: Array, angle: Array, outward: Array) -> Array:
        """Papyrus density from the unrolled scroll: rows are depth, columns the angle.

        `outward` is 1 at the rim, whether the scroll ends there or is broken.
        """
        look, fields = self.look, self._fields
        height, width = level.shape
        share = angle * (np.float32(1.0) / TAU)
        wave = fields["crumple"].spread(t, height, width)
        cell = self._wraps / fields["crumple"].values.shape[1]
        wave *= np.float32(look.crumple * cell) * np.clip(level * 3, 0.0, 1.0)
        phase = level * np.float32(self._wraps) + share + wave
        sheets = fields["sheets"].at(t)
        rows, columns = sheets.shape
        grain = cv2.remap(
            np.concatenate([sheets, sheets[:, :1]], axis=1),
            share * np.float32(columns),
            np.clip(phase * np.float32(3.0), 0, rows - 1),
            cv2.INTER_LINEAR,
        )
        unrolled = cv2.remap(
            self._unrolled(t),
            share * np.float32(511),
            (level + wave / self._wraps) * 255,
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        gap, ribbon, crust = unrolled[..., 0], unrolled[..., 1], unrolled[..., 2]
        bias = fields["opening"].spread(t, height, width)
        bias += ribbon
        bias *= np.float32(0.6 * look.opening)
        bias += np.float32(look.closeness)
        # Sheets may gape, but never so far that nobody could tell where the papyrus ends.
        rim = np.clip((outward - np.float32(0.85)) * 8, 0.0, 1.0)
        bias = np.maximum(bias, np.float32(1.2) * rim - np.float32(0.85))
        bias += np.float32(look.lamination) * np.cos(TAU * phase)
        bias += np.float32(look.grain) * grain
        density = smoothstep(bias, -0.6, 1.3)
        density *= 1.0 - gap
        if look.inclusions > 0:
            grit = np.asarray(crust + np.float32(0.35) * np.asarray(grain), np.float32)
            density += np.float32(0.9) * smoothstep(grit, 0.0, 0.5) * (grain > -0.3)
        return density

    def _unrolled(self, t: float) -> Array:
        """Gaps, ribbons of open sheets, and crusts; (256, 512, 3) float32."""
        look, fields = self.look, self._fields
        gaps = np.zeros((256, 512), np.float32)
        for i in range(min(look.gaps, 6)):
            shape = fields["gaps"].at(t)[i]
            open_ = around(shape, 512) + np.float32(0.5)
            middle = self._gap_places[i] + 0.012 * around(shape[::-1][:7], 512)
            # Far outside, a wrap beyond a wide gap would look like film.
            wide = look.gape if self._gap_places[i] < 0.8 else 1.0
            half = np.clip(open_, 0, 1.2) * self._gap_widths[i] * wide * 256
            upper = np.stack([np.arange(512), middle * 256 - half], axis=1)
            lower = np.stack([np.arange(512), middle * 256 + half], axis=1)
            band = np.concatenate([upper, lower[::-1]])
            cv2.fillPoly(gaps, [np.round(band * 16).astype(np.int32)], 1.0, cv2.LINE_AA, 4)
        ribbon = enlarge(fields["ribbons"].at(t), 256, 512)
        crust = enlarge(fields["crusts"].at(t), 256, 512)
        crust += np.float32(-3.2 + 1.0 * min(look.inclusions * 20, 1.5))
        maps = np.stack([gaps, ribbon, crust], axis=-1)
        maps[:, -24:] += np.linspace(0, 1, 24, dtype=np.float32)[None, :, None] * (
            maps[:, :1] - maps[:, -24:]
        )
        return maps


def traced(kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what is closed off from outside, as a person traces an outline; bool (h, w)."""
    contours, _ = cv2.findContours(
        kept.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    filled = np.zeros(kept.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return filled.astype(bool)
