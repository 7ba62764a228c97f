"""Which grey values of annotated images a detector sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from zarrmask.coco.dataset import CocoImage, read_grey
from zarrmask.contrast import DARK
from zarrmask.detection.inputs import Window
from zarrmask.errors import SettingsError
from zarrmask.grey import auto_window, sample, shows, uses_little

SAMPLED_IMAGES = 8
"""Their grey values stand for those of all images."""


def settle_window(
    images: Sequence[CocoImage], wished: Window | Literal["auto"]
) -> tuple[Window, list[str]]:
    """Settle what the detector's 8 bits span, by a look at a few images.

    Returns
    -------
    window : "seed" or (lo, hi)
    warnings : list of str
        What may not be as it was meant.

    Raises
    ------
    SettingsError
        If images of 8 and of 16 bits are to have one window, or one that shows nothing.
    """
    few = images[:: -(-len(images) // SAMPLED_IMAGES)]
    values = [sample(read_grey(image.path)) for image in few]
    if wished == "seed":
        deep = [part for part in values if part.dtype == np.uint16]
        dark = bool(deep) and uses_little(np.concatenate(deep))
        return wished, [f"the images {DARK}"] if dark else []
    if len({str(part.dtype) for part in values}) > 1:
        raise SettingsError(
            "some images have 8 bits and some have 16: no window suits both; take them apart"
        )
    used = auto_window(np.concatenate(values))
    if isinstance(wished, tuple) and not shows(wished, *used):
        raise SettingsError(
            f"--detect-window {wished[0]:g} {wished[1]:g} leaves nothing to see: the images use "
            f"grey values of {used[0]:g} to {used[1]:g}. Those that zarrmask annotate wrote have "
            "gone through the run's window: leave it out"
        )
    return (wished if isinstance(wished, tuple) else used), []
