"""What the detector says on one keyframe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.sketch import Sketch

UNSEEN, REPLACED, AS_SEEN, SEEN_ANEW = range(-1, 3)
"""What became of what might be a keyframe: nobody looked; its mask is not used, used as it was seen
first, or as seen anew."""

BORDER = 0.5
"""Share of each border that a mask covers that took the air."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """What was found on one keyframe.

    Attributes
    ----------
    boxes : (n, 4) float32
        x0, y0, x1, y1 in pixels of the slice, of the detections above the score.
    scores : (n,) float32
        Descending.
    area : int
        Pixels in the union of their masks, not dilated.
    sketch : Sketch
        That union in small.
    contrast : float
        By how much the slice is brighter inside than outside, of the 255 grey values that the
        detector sees; NaN where there is no inside, or no outside.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    area: int
    sketch: Sketch
    contrast: float = float("nan")

    @classmethod
    def of_mask(
        cls,
        mask: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        image: NDArray[np.uint8] | None = None,
    ) -> Sighting:
        """Keep of a mask (h, w), 0 or 255, what there is to say; `image`: what the detector saw."""
        sketch = Sketch.of_mask(mask)
        contrast = float("nan") if image is None else _contrast(image, sketch)
        return cls(boxes, scores, int(np.count_nonzero(mask)), sketch, contrast)

    @classmethod
    def nothing(cls, shape: tuple[int, int]) -> Sighting:
        """Where nothing is found; the sketch has a shape (h, w)."""
        boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        return cls(boxes, scores, 0, Sketch.of_pixels(np.zeros(shape, bool)))

    @property
    def best_score(self) -> float:
        """The surest detection's; 0 without any."""
        return float(self.scores[0]) if len(self.scores) else 0.0

    @property
    def takes_all_borders(self) -> bool:
        """Whether the mask covers most of each border of the slice."""
        pixels = self.sketch.pixels
        borders = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        return all(border.mean() > BORDER for border in borders)

    def to_json(self) -> dict[str, Any]:
        """Give what `from_json` takes."""
        return {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "area": self.area,
            "sketch": self.sketch.to_json(),
            "contrast": None if np.isnan(self.contrast) else self.contrast,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Sighting:
        """Take what `to_json` gave."""
        contrast = entry["contrast"]
        return cls(
            np.array(entry["boxes"], np.float32).reshape(-1, 4),
            np.array(entry["scores"], np.float32),
            entry["area"],
            Sketch.from_json(entry["sketch"]),
            float("nan") if contrast is None else contrast,
        )


def _contrast(image: NDArray[np.uint8], sketch: Sketch) -> float:
    """Difference of the mean grey values inside and outside."""
    height, width = sketch.shape
    grey = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    inside = sketch.pixels
    if inside.all() or not inside.any():
        return float("nan")
    return float(grey[inside].mean() - grey[~inside].mean())
