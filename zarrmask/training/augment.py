"""detectron2's augmentations: a crop, a size, a flip, of an image and its masks alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.inputs import NetworkInput
from zarrmask.training.recipe import Recipe


@dataclass(frozen=True)
class Change:
    """What happens to one image.

    Attributes
    ----------
    rows, columns : slice
        The part that is taken.
    size : NetworkInput
        What that is brought to.
    flip : str
        "none", "horizontal" or "vertical".
    """

    rows: slice
    columns: slice
    size: NetworkInput
    flip: str

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change an image, (y, x)."""
        return self._flipped(self.size.prepare(image[self.rows, self.columns]))

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Change a mask, (y, x), alike; 0 and 1. A pixel is inside if at least half of it is."""
        grey = self.size.prepare(mask[self.rows, self.columns].astype(np.uint8) * np.uint8(255))
        return self._flipped((grey >= 128).astype(np.uint8))

    def _flipped(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.flip == "none":
            return array
        return array[:, ::-1] if self.flip == "horizontal" else array[::-1]


def draw_change(rng: np.random.Generator, recipe: Recipe, height: int, width: int) -> Change:
    """Draw what happens to an image of some height and width, pixels.

    In detectron2's order: the crop is taken of the image as it is, then brought to its size, then
    flipped in one of two cases.
    """
    tall, wide = crop_shape(rng, recipe, height, width) if recipe.cropped else (height, width)
    top = int(rng.integers(height - tall + 1))
    left = int(rng.integers(width - wide + 1))
    if recipe.sampling == "range":
        short = int(rng.integers(recipe.short[0], recipe.short[1] + 1))
    else:
        short = int(rng.choice(recipe.short))
    return Change(
        slice(top, top + tall),
        slice(left, left + wide),
        NetworkInput(short, recipe.limit),
        recipe.flip if rng.random() < 0.5 else "none",
    )


def crop_shape(
    rng: np.random.Generator, recipe: Recipe, height: int, width: int
) -> tuple[int, int]:
    """Draw a crop's height and width by ``INPUT.CROP.TYPE`` and ``SIZE``; at least a pixel."""
    sides = np.array([height, width])
    size = np.array(recipe.crop_size)
    if recipe.crop_type.startswith("relative"):
        if recipe.crop_type == "relative_range":
            size = rng.uniform(size, 1)
        tall, wide = np.floor(sides * size + 0.5)
    elif recipe.crop_type == "absolute":
        tall, wide = size
    else:  # SIZE is the least side and the greatest, of both axes
        least, most = np.minimum(sides, size[0]), np.minimum(sides, size[1])
        tall, wide = rng.integers(least, most + 1)
    return min(max(int(tall), 1), height), min(max(int(wide), 1), width)
