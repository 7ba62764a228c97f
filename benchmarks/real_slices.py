"""Reading the real slices that simulated ones and a checkpoint are held against."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def grey(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise SystemExit(f"{path} is not an image: does ZARRMASK_SHARED name the right folder?")
    return np.asarray(image, np.uint8)


def frames(film: Path) -> Iterator[NDArray[np.uint8]]:
    """Every frame of a film, (h, w)."""
    reader = cv2.VideoCapture(str(film))
    while (frame := reader.read())[0]:
        yield np.ascontiguousarray(frame[1][..., 0])
