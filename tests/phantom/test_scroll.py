import cv2
import numpy as np
import pytest

from zarrmask.phantom.scroll import Look, Scroll

LOOSE = {"closeness": -0.6, "opening": 1.0, "lamination": 0.1, "grain": 0.1}
"""Sheets that lie so far apart that little papyrus is seen."""


@pytest.mark.parametrize("ends", [{"broken": 0.45}, {"mouth": 2.0, "hollow": 0.5}])
@pytest.mark.parametrize("seed", range(5))
def test_papyrus_can_be_told_from_air_along_breaks_too(ends, seed):
    section = Scroll(np.random.default_rng(seed), Look(**LOOSE, **ends)).section(0.5, 300, 300)
    assert section.inside.any()
    depth = cv2.distanceTransform(section.inside.astype(np.uint8), cv2.DIST_L2, 3)
    along_the_edge = (depth > 0) & (depth <= 3)
    assert np.percentile(section.density[along_the_edge], 25) > 0.1
    assert np.median(section.density[depth > 25]) < 0.1  # deep inside nothing shows
