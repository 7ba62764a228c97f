"""Annotated images: what is on each of them, by a person's word."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zarrmask.coco.region import Region
from zarrmask.detection.inputs import Window, to_8bit
from zarrmask.errors import counted

MOST_PIXELS = 2**32
if Image.MAX_IMAGE_PIXELS is not None:  # Pillow takes 14,000 x 13,000 pixels for an attack
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MOST_PIXELS)


@dataclass(frozen=True)
class Instance:
    """One thing on an image, or a crowd of them.

    Attributes
    ----------
    category : int
        Index of its category in the dataset's, counted from 0.
    region : Region
        Its pixels: a mask by `region.mask()`, a box by `region.box`.
    """

    category: int
    region: Region


@dataclass(frozen=True)
class CocoImage:
    """An image, and what is on it.

    Attributes
    ----------
    id : int
        Its number in the annotations.
    path : Path
        The file.
    height, width : int
        Pixels.
    instances : tuple of Instance
        What a detector is to find; none where the image is empty.
    crowds : tuple of Instance
        Where nobody said which pixels are whose: not trained on; what is found there is neither
        right nor wrong.
    bits : int
        Of a grey value: 8 or 16.
    """

    id: int
    path: Path
    height: int
    width: int
    instances: tuple[Instance, ...] = ()
    crowds: tuple[Instance, ...] = ()
    bits: int = 8

    def grey(self, window: Window = "seed") -> NDArray[np.uint8]:
        """Read the image as a detector sees it, (y, x): see `to_8bit`."""
        return to_8bit(read_grey(self.path), window)

    def true(self, categories: Collection[int] | None = None) -> Region:
        """Pixels of any instance, or of any of some categories."""
        return self._union(
            tuple(
                instance
                for instance in self.instances
                if categories is None or instance.category in categories
            )
        )

    def ignored(self) -> Region:
        """Pixels of any crowd."""
        return self._union(self.crowds)

    def _union(self, instances: tuple[Instance, ...]) -> Region:
        regions = [instance.region for instance in instances]
        return Region.of_union(regions, self.height, self.width)


@dataclass(frozen=True)
class CocoDataset:
    """Annotated images.

    Attributes
    ----------
    path : Path
        The annotations' file.
    names : tuple of str
        The categories', in the order of their ids.
    images : tuple of CocoImage
        In the order of the file.
    """

    path: Path
    names: tuple[str, ...]
    images: tuple[CocoImage, ...]

    def __str__(self) -> str:
        instances = sum(len(image.instances) for image in self.images)
        crowds = sum(len(image.crowds) for image in self.images)
        empty = sum(not image.instances for image in self.images)
        return (
            f"{counted(len(self.images), 'images')}, {empty:,} of them empty, with "
            f"{counted(instances, 'instances')} of {', '.join(self.names)}"
            + (f"; {counted(crowds, 'crowds')}, ignored" if crowds else "")
        )


def read_grey(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read an image as grey values of 8 or 16 bits, (y, x); colours become grey.

    What a camera notes of its turn counts, as to detectron2.

    Raises
    ------
    OSError, ValueError, SyntaxError
        If it is missing, damaged, of more bits or no image; others are possible.
    """
    with Image.open(path) as image:
        if (count := getattr(image, "n_frames", 1)) > 1:
            raise ValueError(f"{count} images in a file; expected one")
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PHOTOMETRIC) == 0:
            raise ValueError("zero is white (MINISWHITE); expected zero to be black: invert it")
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return np.asarray(upright).astype(np.uint16)
        if upright.mode in ("I", "F") or tags.get(_SAMPLE_FORMAT) == _SIGNED:
            raise ValueError("signed, or 32 bits a pixel; expected 8 or 16 without a sign")
        return np.asarray(upright if upright.mode == "L" else upright.convert("L"))


_PHOTOMETRIC = 262
"""Number of the TIFF tag that says whether zero is black."""
_SAMPLE_FORMAT, _SIGNED = 339, (2,)
"""Of the tag that says whether numbers have a sign, and its word for that they do."""
