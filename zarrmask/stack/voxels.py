"""How large a voxel is, by what images say: sides and their units."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_UNITS = {
    1e-4: ("angstrom",),
    1e-3: ("nanometer", "nanometre", "nm"),
    1.0: ("micrometer", "micrometre", "micron", "microns", "um", "\u00b5m", "\u03bcm"),
    1e3: ("millimeter", "millimetre", "mm"),
    1e4: ("centimeter", "centimetre", "cm"),
    1e6: ("meter", "metre", "m"),
}
MICROMETRES = {name: size for size, names in _UNITS.items() for name in names}
"""By the names of NGFF (the first of each), and by what people write instead."""


class Voxels(NamedTuple):
    """What an image says of its voxels.

    Attributes
    ----------
    size, oblong
        `voxel_size` and `oblong` of a `Source`.
    unitless : bool
        Whether no unit is told, so that micrometres are taken.
    """

    size: float | None
    oblong: str
    unitless: bool = False


UNKNOWN = Voxels(None, "")


def stated_voxels(scale: np.ndarray, units: Sequence[str | None]) -> Voxels:
    """Tell the size of a voxel, or its sides; see `voxel_size`."""
    size = voxel_size(scale, units)
    if size is None:
        return Voxels(None, sides_of(scale, units))
    return Voxels(size, "", unitless=not any(units))


def voxel_size(scale: np.ndarray, units: Sequence[str | None]) -> float | None:
    """Return the side of a voxel, if it is told and the same on all axes.

    Parameters
    ----------
    scale : numpy.ndarray, shape (3,)
        Along z, y, x.
    units : sequence of str or None
        Likewise; a scale without a unit is taken as micrometres, unless it is 1.

    Returns
    -------
    float or None
        Micrometres.

    Examples
    --------
    >>> voxel_size(np.full(3, 7910.0), ["nanometer"] * 3)
    7.91
    """
    if not any(units) and np.all(scale == 1):
        return None
    sizes = scale * [1.0 if unit is None else MICROMETRES.get(unit, np.nan) for unit in units]
    isotropic = np.all(sizes > 0) and np.ptp(sizes) <= 1e-6 * sizes.max()
    return round(float(sizes[0]), 9) if isotropic else None


def sides_of(scale: np.ndarray, units: Sequence[str | None]) -> str:
    """Say of a voxel that has no one size what sides it has; nothing where there is nothing to say.

    Parameters
    ----------
    scale, units
        As of `voxel_size`, that gives none for them.
    """
    same = len(set(units)) == 1 and np.ptp(scale) <= 1e-6 * scale.max()
    if same and np.all(scale == 1):
        return ""
    sides = [f"{side:g} {unit or ''}".rstrip() for side, unit in zip(scale, units, strict=True)]
    if len(set(units)) == 1:
        sides = [*(f"{side:g}" for side in scale[:-1]), sides[-1]]
    unknown = [unit for unit in dict.fromkeys(units) if unit and unit not in MICROMETRES]
    why = f"of no unit that is known ({', '.join(unknown)})" if unknown else "not cubic"
    return f"{' x '.join(sides)}, {why}"
