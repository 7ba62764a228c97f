"""Pictures of no more than so many bytes."""

import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrmask.report import pictures
from zarrmask.report.pictures import FRAME, OUTLINE, SECTION, SLICE, SUSPECT, Size, jpeg, svg_path
from zarrmask.report.planes import outlines
from zarrmask.report.views import FRAMES, SLICES, SUSPECTS


def decoded(encoded):
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)


@settings(max_examples=30)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(800, 20_000), st.integers(0, 9))
def test_no_jpeg_takes_more_than_it_may(height, width, most, seed):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    encoded = jpeg(noise, Size(300, most))
    assert len(encoded) <= most
    seen = decoded(encoded)
    assert max(seen.shape) <= 300
    smaller = max(1, max(noise.shape) / max(seen.shape))
    assert min(seen.shape) == pytest.approx(max(1, min(noise.shape) / smaller), abs=1)


def test_what_is_small_enough_stays_as_it_is():
    image = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    seen = decoded(jpeg(image, FRAME))
    assert seen.shape == image.shape
    assert np.abs(seen.astype(int) - image).max() < 4


@pytest.mark.parametrize("kind", ["noise", "comb", "disc"])
def test_no_outline_takes_more_than_it_may(kind):
    if kind == "noise":
        inside = np.random.default_rng(0).random((400, 600)) < 0.5
    elif kind == "comb":
        inside = np.indices((400, 600))[1] % 4 < 2
        inside[0] = True
    else:
        inside = cv2.circle(np.zeros((400, 600), np.uint8), (300, 200), 150, 1, -1) > 0
    path = svg_path(outlines(inside))
    assert len(path) <= OUTLINE
    assert re.fullmatch(r"(M[\d.,L]+Z)*", path)
    if kind == "disc":
        points = np.array([point.split(",") for point in re.findall(r"[\d.]+,[\d.]+", path)], float)
        radius = np.hypot(*(points - (300.5, 200.5)).T)
        np.testing.assert_allclose(radius, 150, atol=2)


def test_pictures_of_any_stack_together_take_little():
    many = ((FRAMES, FRAME), (SLICES, SLICE), (3 * SUSPECTS, SUSPECT), (2, SECTION))
    jpegs = sum(count * size.most for count, size in many) * 4 / 3
    # An edge is drawn in black and above that in colour.
    lines = sum(count for count, _ in many) * 2 * OUTLINE + 3 * SUSPECTS * OUTLINE
    assert jpegs + lines < 13.5e6
    assert tuple(sorted(pictures.QUALITIES, reverse=True)) == pictures.QUALITIES
