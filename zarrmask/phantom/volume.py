"""A simulated scroll as a stack of slices with its true mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from zarrmask.errors import SettingsError
from zarrmask.phantom.noise import Field
from zarrmask.phantom.render import compose
from zarrmask.phantom.scanner import Scanner
from zarrmask.phantom.scroll import Look, Scroll, Section
from zarrmask.phantom.surroundings import Case, Film, Pores, distance_outside, hull
from zarrmask.storage.atomic import refuse_full

KNOTS = (2, 8)  # fewest and most places along z between which a scroll drifts


class Phantom:
    """A crushed scroll in its film and case, from one end to the other.

    A slice is drawn when it is asked for, from the seed and its number alone: slices can be drawn
    in any order, and memory is that of one slice, however long the scroll.

    Parameters
    ----------
    shape : tuple of int
        Slices, rows, columns; each at least 1.
    seed : int
        Another seed is another scroll.

    Examples
    --------
    >>> image, mask = Phantom((9, 40, 48), seed=1).slice(4)
    >>> image.dtype, mask.shape
    (dtype('uint16'), (40, 48))
    """

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise SettingsError(
                f"A phantom's shape is three sizes of at least 1 (z y x), not {shape}."
            )
        self.shape, self.seed = shape, seed
        depth, height, width = shape
        rng = np.random.default_rng(seed)
        unit = min(height, width)
        self._look = Look(
            centre=(0.5, 0.5),
            axes=(float(rng.uniform(0.38, 0.42)), float(rng.uniform(0.36, 0.4))),
            corner=2.2, lobes=0.07, folds=7, depth=0.2, reach=1.0, warp=0.05,
            pitch=max(0.008, 2.5 / unit), crumple=0.12, streaks=int(np.clip(1.2 * unit, 64, 4000)),
            lamination=0.4, grain=0.45,
            closeness=0.5, opening=0.7, gaps=3, inclusions=0.03,
        )  # fmt: skip
        knots = int(np.clip(depth // 30, *KNOTS))
        self._scroll = Scroll(rng, self._look, knots)
        middle = self._scroll.section(0.5, height, width)
        case = Case(gap=0.015, thickness=0.1, bumps=0.04, slots=3, pieces=3, rough=0.2)
        self._case = case.draw(rng, distance_outside(hull(middle.whole)), middle.angle)
        radius = max(unit / 700, 0.8)
        self._pores = Pores(int(rng.integers(2**31)), 7000 / max(radius, 1) ** 2, radius)
        curls = tuple((float(rng.random()), 0.008, 4.0) for _ in range(3))
        self._films = (
            Film(Field(rng, (6, 6), knots), 0.008, unit / 400, curls),
            Film(Field(rng, (5, 5), knots), 0.02, unit / 500, open=0.6),
        )
        self._scanner = Scanner(blur=0.7 if unit >= 64 else 0.3)

    def slice(self, z: int) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Draw one slice and its truth.

        Parameters
        ----------
        z : int
            From 0 to the number of slices, which is excluded.

        Returns
        -------
        image : ndarray of uint16, shape (h, w)
        mask : ndarray of bool, shape (h, w)
            The papyrus and the air between its wraps. The open mouth of a C is outside.
        """
        _, height, width = self.shape
        section, t = self._section(z), self._along(z)
        rng = np.random.default_rng([self.seed, z])
        film = np.zeros((height, width), np.uint8)
        away = distance_outside(hull(section.whole))
        for layer in self._films:
            layer.draw(film, away, t)
        texture = np.empty((height, width), np.float32)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(texture, 0.0, 0.02)
        image = compose(
            section,
            self._case,
            self._pores.draw(z, height, width),
            film,
            self._scanner,
            texture,
            1.6,
        )
        image = self._scanner.expose(
            self._scanner.shape(image), rng, rings=np.random.default_rng([self.seed, 1 << 20])
        )
        return (np.clip(image, 0, 1) * 65535).astype(np.uint16), section.inside

    def truth(self, z: int) -> NDArray[np.bool_]:
        """Draw the truth of one slice alone; see `slice`."""
        return self._section(z).inside

    def _section(self, z: int) -> Section:
        depth, height, width = self.shape
        if not 0 <= z < depth:
            raise IndexError(f"slice {z} of a phantom of {depth}")
        t = self._along(z)
        return self._scroll.section(t, height, width, self._at(t))

    def _along(self, z: int) -> float:
        """Where a slice lies, from 0 to 1 along the scroll."""
        return (z + 0.5) / self.shape[0]

    def _at(self, t: float) -> Look:
        """Change the look at `t`: towards an end it opens into a C, breaks up and is gone."""
        near = min(t, 1.0 - t)
        whole = float(np.clip((near - 0.07) / 0.13, 0.0, 1.0))
        closed = float(np.clip((near - 0.16) / 0.12, 0.0, 1.0))
        if closed >= 1.0:
            return self._look
        return replace(
            self._look,
            size=0.45 + 0.55 * whole**0.5,
            broken=1.0 - 0.85 * whole if whole < 1.0 else 0.15 * (1.0 - closed),
            mouth=1.8 * (1.0 - closed),
            hollow=0.5 * (1.0 - closed) + 0.05,
        )


def write_phantom(
    out: Path,
    shape: tuple[int, int, int],
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a simulated scroll as TIFF slices (uint16) with its true mask.

    Leaves ``out/00000.tif``, ... (uncompressed, one strip, so that they can be memory-mapped) and
    ``out/truth/00000.png``, ... (uint8, 0 or 255). One slice is in memory at a time.

    Parameters
    ----------
    out : Path
        Folder; made if it does not exist, and refused if it holds anything.
    shape : tuple of int
        Slices, rows, columns.
    seed : int
        Another seed is another scroll.
    progress : callable, optional
        Called after each slice with how many were written since: 1.

    Raises
    ------
    OutputError
        If `out` is a file or is not empty.
    SettingsError
        If `shape` is not possible.
    """
    phantom = Phantom(shape, seed)
    refuse_full(out)
    truth = out / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    digits = max(5, len(str(shape[0] - 1)))
    for z in range(shape[0]):
        image, mask = phantom.slice(z)
        name = f"{z:0{digits}d}"
        tifffile.imwrite(out / f"{name}.tif", image, photometric="minisblack", contiguous=True)
        _, png = cv2.imencode(".png", mask.astype(np.uint8) * 255)
        # OpenCV's own writing says nothing of a full disk.
        (truth / f"{name}.png").write_bytes(png.tobytes())
        if progress is not None:
            progress(1)
