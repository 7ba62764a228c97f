"""What the scanner makes of a section: air, blur, noise, rings, field of view, grey values."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.phantom.noise import Array, enlarge


@dataclass(frozen=True)
class Scanner:
    """Grey values are shares of the range (0 black, 1 white); lengths are pixels.

    Attributes
    ----------
    air, papyrus, case, film : float
        Grey values of the materials.
    blur, noise : float
        Width of the point spread; noise of a pixel. `noise_grain` is the noise's own width.
    edge : float
        Bright and dark fringes at edges (phase contrast, sharpening).
    rings : float
        Strength of ring artefacts.
    shading : float
        Slow change of the grey values over the field.
    view : float
        Radius of the reconstructed circle over half the longer side; 0 for none.
    """

    air: float = 0.39
    papyrus: float = 0.60
    case: float = 0.62
    film: float = 0.60
    blur: float = 0.6
    noise: float = 0.02
    noise_grain: float = 0.5
    edge: float = 0.3
    rings: float = 0.004
    shading: float = 0.01
    view: float = 0.0
    outside: float = 0.39

    def shape(self, image: Array) -> Array:
        """Blur and fringes; before the slice is brought to its size."""
        if self.blur > 0.2:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), self.blur), np.float32)
        if self.edge > 0:
            image = image + np.float32(self.edge) * (image - cv2.GaussianBlur(image, (0, 0), 1.8))
        return np.asarray(image, np.float32)

    def sees(self, height: int, width: int) -> NDArray[np.bool_]:
        """Which pixels lie in the field of view; bool (h, w)."""
        if self.view <= 0:
            return np.ones((height, width), bool)
        cols = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
        rows = np.arange(height, dtype=np.float32) - np.float32((height - 1) / 2)
        reach = self.view * max(height, width) / 2
        return np.asarray(cols[None, :] ** 2 + rows[:, None] ** 2 <= reach * reach)

    def expose(
        self, image: Array, rng: np.random.Generator, rings: np.random.Generator | None = None
    ) -> Array:
        """Add shading, rings, noise and the field of view; `rings` repeats them over slices."""
        height, width = image.shape
        lasting = rings or rng
        if self.shading > 0:
            image = image + enlarge(
                np.float32(self.shading) * lasting.standard_normal((3, 3), dtype=np.float32),
                height,
                width,
            )
        if self.rings > 0:
            middle = np.array([width, height]) * (0.5 + 0.02 * lasting.standard_normal(2))
            cols = np.arange(width, dtype=np.float32) - np.float32(middle[0])
            rows = np.arange(height, dtype=np.float32) - np.float32(middle[1])
            radius = np.sqrt(cols[None, :] ** 2 + rows[:, None] ** 2)
            profile = lasting.standard_normal(height + width + 4, dtype=np.float32)
            profile *= np.float32(self.rings) * (lasting.random(len(profile)) < 0.4)
            image = image + profile[radius.astype(np.int32).clip(0, len(profile) - 1)]
        if self.noise > 0:
            grain = np.empty((height, width), np.float32)
            cv2.setRNGSeed(int(rng.integers(2**31)))
            cv2.randn(grain, 0.0, self.noise)
            if self.noise_grain > 0.3:
                grain = cv2.GaussianBlur(grain, (0, 0), self.noise_grain) * np.float32(
                    1 + 1.5 * self.noise_grain
                )
            image = image + grain
        if self.view > 0:
            image = np.where(self.sees(height, width), image, np.float32(self.outside))
        return np.asarray(image, np.float32)
