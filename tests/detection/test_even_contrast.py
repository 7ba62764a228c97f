from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.detection.config import interpret
from zarrmask.detection.even_contrast import LEAST, MIDDLE, NOISE, SPAN, even
from zarrmask.detection.network import build_model
from zarrmask.detection.shapes import STANDARD_FPN
from zarrmask.errors import CheckpointError


def scroll(height=61, width=90, dark=60.0, bright=160.0):
    """A bright disc in dark air, with some noise."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 3) ** 2
    noise = torch.randn((height, width), generator=torch.Generator().manual_seed(0))
    return (dark + (bright - dark) * disc + noise)[None]


@given(gain=st.floats(0.35, 1.4), offset=st.floats(-15, 25))
def test_a_window_makes_no_difference(gain, offset):
    image = scroll()
    assert torch.allclose(even(image * gain + offset), even(image), atol=1e-2)


def test_dark_and_bright_come_to_their_values():
    evened = even(scroll())
    assert evened[0, 30, 45] == pytest.approx(MIDDLE + SPAN / 2, abs=6)
    assert evened[0, :8, :8].mean() == pytest.approx(MIDDLE - SPAN / 2, abs=3)
    assert even(scroll(dark=0, bright=255)).max() <= 255


@pytest.mark.parametrize("value", [0.0, 255.0])
@pytest.mark.parametrize("thickness", [1, 5])
def test_a_line_drawn_over_it_hardly_counts(value, thickness):
    image = scroll()
    drawn = image.clone()
    drawn[0, 5 : 5 + thickness] = value
    assert (even(drawn) - even(image))[0, 12:].abs().max() < 3


@pytest.mark.parametrize("strength", [1, 30])
def test_noise_alone_stays_faint(strength):
    noise = 100 + strength * torch.randn((1, 80, 80), generator=torch.Generator().manual_seed(0))
    assert even(noise).std() <= noise.std() * SPAN / LEAST * 1.001
    cells = even(noise).unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))
    assert cells.std() < SPAN / NOISE * 1.1
    assert (even(torch.full((1, 9, 9), 200.0)) == MIDDLE).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (4, 4), (5, 9)])
def test_slices_of_a_few_pixels(shape):
    evened = even(torch.rand((1, *shape)) * 255)
    assert evened.shape == (1, *shape)
    assert torch.isfinite(evened).all()


def test_colours_are_changed_alike():
    image = torch.cat([scroll(), scroll() + 20, scroll() - 20])
    evened = even(image)
    assert torch.allclose(evened[1] - evened[0], evened[0] - evened[2], atol=1e-2)


def test_a_network_sees_it_if_its_config_says_so(tiny):
    pictures = [scroll(64, 64), scroll(64, 64) * 0.5 + 40]
    seen = [
        [build_model(replace(tiny, even_contrast=evens)).transform([one])[0] for one in pictures]
        for evens in (False, True)
    ]
    assert not torch.allclose(seen[0][0].tensors, seen[0][1].tensors, atol=0.1)
    assert torch.allclose(seen[1][0].tensors, seen[1][1].tensors, atol=1e-3)


def test_the_key_is_read_and_a_slip_of_the_pen_is_not_passed_over():
    assert interpret([{"ZARRMASK": {"EVEN_CONTRAST": True}}, STANDARD_FPN], "it").even_contrast
    assert not interpret([STANDARD_FPN], "it").even_contrast
    for wrong in ({"EVEN_CONTRAST": 1}, {"EVEN_CONTRASTS": True}):
        with pytest.raises(CheckpointError, match=r"ZARRMASK\.EVEN_CONTRAST"):
            interpret([{"ZARRMASK": wrong}, STANDARD_FPN], "it")
