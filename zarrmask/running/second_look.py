"""By what other means a slice is looked at on which the detector seems to be wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.inputs import NetworkInput, Window, to_8bit
from zarrmask.grey import auto_window, sample


@dataclass(frozen=True)
class Means:
    """How a slice is shown to the detector, and what of its answer counts.

    Attributes
    ----------
    name : str
        For a person.
    own_window : bool
        Whether its grey values are taken by the percentiles of this slice alone.
    scale : float
        Times the network's usual size.
    score : float
        Only what scores more counts.
    """

    name: str
    own_window: bool = False
    scale: float = 1.0
    score: float = 0.0

    def prepare(
        self, image: NDArray, window: Window, network_input: NetworkInput, of: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Make of a slice what the network sees; see `NetworkInput.prepare`."""
        chosen = auto_window(sample(image)) if self.own_window else window
        return network_input.scaled(self.scale).prepare(to_8bit(image, chosen), of)


MEANS = (
    Means("surer detections alone", score=0.5),
    Means("its own contrast", own_window=True),
    Means("its own contrast, smaller", own_window=True, scale=0.75),
    Means("its own contrast, larger", own_window=True, scale=1.25),
)
LARGEST = max(means.scale for means in MEANS)
