"""Coordinate transformations of OME-NGFF images. Arithmetic only.

https://ngff.openmicroscopy.org/0.4/#trafo-md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def combined(
    transformations: Iterable[Mapping[str, Any]], ndim: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give what transformations, applied in order, amount to along the last axes.

    Parameters
    ----------
    transformations : iterable of mapping
        Those of a dataset, then those of its multiscale. What is no scale or translation is passed
        over.
    ndim : int
        How many axes.

    Returns
    -------
    scale, start : (ndim,) float64
        Side of a voxel, and where the first one's middle lies.

    Examples
    --------
    >>> whole = {"type": "scale", "scale": [9, 2, 2]}
    >>> combined([{"type": "translation", "translation": [0, 5, 6]}, whole], 2)
    (array([2., 2.]), array([10., 12.]))
    """
    scale, start = np.ones(ndim), np.zeros(ndim)
    for one in transformations:
        if one["type"] == "scale":
            factors = np.asarray(one["scale"][-ndim:], float)
            scale, start = scale * factors, start * factors
        elif one["type"] == "translation":
            start = start + np.asarray(one["translation"][-ndim:], float)
    return scale, start
