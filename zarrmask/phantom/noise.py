"""Smooth random fields that drift along the scroll's axis."""

from __future__ import annotations

from math import cos, pi, sin

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Field:
    """A random lattice of unit variance that changes slowly along z.

    The lattice stands at `knots` places along the axis; between two of them it is their blend with
    weights on the unit circle, so that its variance does not sag half-way.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the lattice.
    shape : tuple of int
        Lattice points; one, two or three axes (the last may be channels).
    knots : int
        Lattices along the axis. 1 makes a field that does not change.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], knots: int = 1) -> None:
        self.values: Array = rng.standard_normal((knots, *shape), dtype=np.float32)

    def at(self, t: float) -> Array:
        """Lattice at `t` (0 first knot, 1 last), float32 of the lattice's shape."""
        last = len(self.values) - 1
        place = min(max(t, 0.0), 1.0) * last
        below = min(int(place), max(last - 1, 0))
        angle = (place - below) * pi / 2
        if angle == 0.0:
            return np.asarray(self.values[below], np.float32)
        blend: Array = np.float32(cos(angle)) * self.values[below]
        blend += np.float32(sin(angle)) * self.values[below + 1]
        return blend

    def spread(self, t: float, height: int, width: int) -> Array:
        """Lattice at `t`, drawn out smoothly to (height, width), float32."""
        return enlarge(self.at(t), height, width)


def enlarge(lattice: Array, height: int, width: int) -> Array:
    """Resize a lattice bicubically to (height, width), float32."""
    return np.asarray(
        cv2.resize(lattice, (width, height), interpolation=cv2.INTER_CUBIC), np.float32
    )


def smoothstep(values: Array, low: float, high: float) -> Array:
    """Ramp from 0 at `low` to 1 at `high` with flat ends, float32."""
    ramp = np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0.0, 1.0)
    return np.asarray(ramp * ramp * (np.float32(3.0) - np.float32(2.0) * ramp), np.float32)


def around(values: Array, columns: int) -> Array:
    """Periodic cubic-like interpolation of values round a circle to `columns` samples, float32."""
    ring = np.concatenate([values[-2:], values, values[:2]])[None, :]
    step = columns / len(values)
    wide = cv2.resize(ring, (round(len(ring[0]) * step), 1), interpolation=cv2.INTER_CUBIC)[0]
    start = round(2 * step)
    return np.asarray(wide[start : start + columns], np.float32)
