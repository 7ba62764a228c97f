"""What every detector does, whatever network is behind it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.closer import look_closer
from zarrmask.detection.detections import Detections
from zarrmask.detection.inputs import NetworkInput


class Detector(Protocol):
    """Finds the scroll in slices.

    The slices are shrunk where they are read (`network_input.prepare`); only what the network sees
    comes here.
    """

    @property
    def network_input(self) -> NetworkInput:
        """How a slice becomes what the network sees."""
        ...

    @property
    def classes(self) -> int:
        """How many classes of objects it tells apart."""
        ...

    def detect(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detect in a batch of slices.

        Parameters
        ----------
        images : sequence of ndarray of uint8, (h', w') or (h', w', 3) BGR
            As `network_input.prepare` gives them.
        sizes : sequence of (int, int)
            Height and width of the slices they were made from, in pixels.

        Returns
        -------
        list of Detections
            One for each image, in pixels of the slice.
        """
        ...


def detect_one(detector: Detector, image: NDArray[np.uint8]) -> Detections:
    """Detect in one slice, of 8 bits and as large as it is, looking closer if the detector does.

    Parameters
    ----------
    detector : Detector
    image : ndarray of uint8, (h, w) or (h, w, 3) BGR
    """

    def detect(prepared: NDArray[np.uint8], size: tuple[int, int]) -> Detections:
        (found,) = detector.detect([prepared], [size])
        return found

    shape, seen = (image.shape[0], image.shape[1]), detector.network_input
    return look_closer(detect(seen.prepare(image), shape), image, shape, seen, detect)
