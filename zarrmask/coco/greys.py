"""Which grey values of annotated images a detector sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zarrmask.coco.dataset import CocoImage, read_grey
from zarrmask.contrast import DARK
from zarrmask.detection.inputs import Window, to_8bit
from zarrmask.errors import SettingsError
from zarrmask.grey import auto_window, sample, shows, uses_little

SAMPLED_IMAGES = 8
"""Their grey values stand for those of all images."""
WIDEST_OF_8 = 1024
"""A wider window is one of 16 bits."""
DIM = (
    "use less than an eighth of what {} spans, which shows the detector little of them; "
    "--detect-window auto spreads what they use"
)


def settle_window(
    images: Sequence[CocoImage],
    wished: Window | Literal["auto"],
    others: Sequence[CocoImage] = (),
) -> tuple[Window, list[str]]:
    """Settle what the detector's 8 bits span, by a look at a few images.

    Parameters
    ----------
    images : sequence of CocoImage
    wished : "seed", "auto" or (lo, hi)
    others : sequence of CocoImage
        That are to be seen through the same window.

    Returns
    -------
    window : "seed" or (lo, hi)
    warnings : list of str
        What may not be as it was meant.

    Raises
    ------
    SettingsError
        If images of 8 and of 16 bits are to have one window, or if it shows nothing of them; if
        those of 8 bits are to have one that is meant for 16.
    """
    if wished == "seed":
        deep = [image for image in images if image.bits > 8]
        dark = bool(deep) and uses_little(_sampled(deep))
        return wished, [f"the images {DARK}"] if dark else []
    _require_one_depth([*images, *others])
    values = _sampled(images)
    used = auto_window(values)
    if wished == "auto":
        return used, []
    seen = to_8bit(values, wished)
    said = f"--detect-window {wished[0]:g} {wished[1]:g}"
    too_wide = values.dtype == np.uint8 and wished[1] - wished[0] > WIDEST_OF_8
    much = "next to nothing" if too_wide else ""
    if not shows(wished, *used) or (seen.min() == seen.max() and values.min() < values.max()):
        much = "nothing"
    if much:
        raise SettingsError(
            f"{said} leaves {much} to see: the images use grey values of {used[0]:g} to "
            f"{used[1]:g}. Those that zarrmask annotate wrote have gone through the run's window: "
            "leave it out"
        )
    return wished, [f"the images {DIM.format(said)}"] if uses_little(seen) else []


def _require_one_depth(images: Sequence[CocoImage]) -> None:
    first_of_each = {image.bits: image for image in reversed(images)}
    if len(first_of_each) > 1:
        named = " and ".join(
            f"{image.path.name} has {bits} bits" for bits, image in sorted(first_of_each.items())
        )
        raise SettingsError(f"{named}: no window suits both; take them apart")


def _sampled(images: Sequence[CocoImage]) -> NDArray:
    """Grey values of a few images."""
    few = images[:: -(-len(images) // SAMPLED_IMAGES)]
    return np.concatenate([sample(read_grey(image.path)) for image in few])
