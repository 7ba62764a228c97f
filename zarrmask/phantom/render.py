"""One slice from its parts: papyrus, film, case, air."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.phantom.noise import Array
from zarrmask.phantom.scanner import Scanner
from zarrmask.phantom.scroll import Section


def compose(
    section: Section,
    case: NDArray[np.uint8],
    pores: NDArray[np.uint8],
    film: NDArray[np.uint8],
    scanner: Scanner,
    texture: Array,
    crust: float = 1.0,
) -> Array:
    """Lay the materials over each other; papyrus hides the case, the case hides film.

    Parameters
    ----------
    section : Section
        The papyrus.
    case, pores, film : ndarray of uint8, shape (h, w)
        Coverage, 0 to 255.
    texture : ndarray of float32, shape (h, w)
        Grain of the case's material, around 0.

    Returns
    -------
    ndarray of float32, shape (h, w)
        Grey values, about 0 to 1.
    """
    air = np.float32(scanner.air)
    image = np.full(case.shape, air)
    solid = cv2.multiply(case, pores, scale=1 / 255).astype(np.float32) * np.float32(1 / 255)
    solid *= ~section.inside
    image += solid * (np.float32(scanner.case) - air + texture)
    line = film.astype(np.float32) * np.float32(1 / 255)
    line *= 1 - solid
    image += line * (np.float32(scanner.film) - air)
    papyrus = np.minimum(section.density, np.float32(crust)) * section.inside
    image += papyrus * (np.float32(scanner.papyrus) - air) * (1 - line * np.float32(0.7))
    return np.asarray(image, np.float32)
