"""Windows of grey values, and what becomes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zarrmask.contrast import DARK, Contrast, choose_contrast, output_dtype, samples_needed
from zarrmask.errors import SettingsError
from zarrmask.grey import Rescaling, auto_window, sample, uses_little
from zarrmask.settings import Settings

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def test_a_12_bit_stack_uses_little_of_16_bits():
    values = np.repeat(np.arange(4096, dtype=np.uint16), 10)
    assert uses_little(values)
    assert auto_window(values) == (20, 4075)
    assert not uses_little(np.arange(60000, dtype=np.uint16))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_a_window_of_one_grey_value_is_not_empty(dtype):
    low, high = auto_window(np.full(100, 7, dtype))
    assert low < high


def test_signed_greys_that_lie_far_apart():
    values = np.full(100, -20000, np.int16)
    values[0] = 20000
    assert auto_window(values) == pytest.approx(auto_window(values.astype(float)))
    assert auto_window(values)[1] < 20000


def test_a_sample_is_spread_over_the_image_and_finite():
    image = np.arange(1000 * 1000, dtype=np.float32).reshape(1000, 1000)
    image[::7] = np.nan
    image[1::7] = np.inf
    values = sample(image)
    assert np.isfinite(values).all()
    assert len(values) < 2**18
    assert values.min() < 1e4
    assert values.max() > 9.8e5


@given(
    voxels=SHAPES.flatmap(
        lambda shape: st.one_of(
            arrays(np.uint8, shape),
            arrays(np.uint16, shape),
            arrays(np.int16, shape),
            arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32)),
        )
    ),
    low=st.floats(-1000, 1000),
    width=st.floats(0.5, 1e5),
    dtype=st.sampled_from(["uint8", "uint16"]),
)
def test_grey_values_are_spread_over_the_window(voxels, low, width, dtype):
    out = np.empty(voxels.shape, dtype)
    Rescaling(low, low + width, dtype)(voxels, out)
    greatest = np.iinfo(dtype).max
    exact = (voxels.astype(np.float64) - low) / ((low + width) - low) * greatest
    assert np.abs(out - np.clip(exact, 0, greatest)).max() <= 0.5 + 1e-6


def test_what_is_no_number_is_black():
    out = np.empty((1, 1, 3), np.uint8)
    Rescaling(0, 1, "uint8")(np.array([[[np.nan, np.inf, -np.inf]]], np.float32), out)
    assert out.tolist() == [[[0, 255, 0]]]


def test_grey_values_do_not_change_unless_somebody_says_how():
    for dtype, settings in (
        ("float32", Settings()),
        ("int16", Settings()),
        ("uint16", Settings(dtype="uint8")),
    ):
        with pytest.raises(SettingsError, match="--window LO HI"):
            output_dtype(np.dtype(dtype), settings)
    assert output_dtype(np.dtype("float32"), Settings(window=(0, 1))) == "uint16"
    assert output_dtype(np.dtype("uint8"), Settings()) == "uint8"


@pytest.mark.parametrize("name", ["window", "detect_window"])
@pytest.mark.parametrize(
    ("dtype", "window", "shows"),
    [
        ("uint8", (20_000, 40_000), False),
        ("uint8", (255, 300), False),
        ("uint8", (254, 300), True),
        ("uint16", (-9, 0), False),
        ("int16", (-900, -100), True),
        ("float32", (1e6, 2e6), True),
    ],
)
def test_a_window_beyond_all_grey_values_is_refused(name, dtype, window, shows):
    settings = Settings(**{"window": (0, 9), "dtype": "uint8", name: window})
    if shows:
        assert output_dtype(np.dtype(dtype), settings) == "uint8"
    else:
        with pytest.raises(SettingsError, match=f"--{name.replace('_', '-')} .* shows nothing of"):
            output_dtype(np.dtype(dtype), settings)


@pytest.mark.parametrize(
    ("dtype", "given_", "expected", "samples"),
    [
        ("uint16", {}, Contrast("seed", None, (f"the slices {DARK}",)), 1),
        ("uint8", {}, Contrast("seed", None), 0),
        ("uint16", {"detect_window": (3, 9)}, Contrast((3, 9), None), 0),
        ("uint16", {"detect_window": "auto"}, Contrast((4, 994), None), 1),
        ("uint16", {"window": "auto"}, Contrast("seed", (4, 994), (f"the slices {DARK}",)), 2),
        ("float32", {"window": "auto"}, Contrast((4.995, 994.005), (4.995, 994.005)), 1),
        ("float32", {"window": (0, 900)}, Contrast((0, 900), (0, 900)), 1),
        ("int16", {"window": (-900, 600)}, Contrast((-900, 600), (-900, 600)), 1),
        (
            "float32",
            {"window": (600, 990), "detect_window": (0, 900)},
            Contrast((0, 900), (600, 990)),
            1,
        ),
    ],
)
def test_windows_are_settled_from_what_is_needed(dtype, given_, expected, samples):
    asked = []

    def values(*, finest):
        asked.append(finest)
        return np.arange(1000).astype(dtype)

    chosen = choose_contrast(np.dtype(dtype), Settings(**given_), values, detecting=True)
    assert chosen == expected
    assert len(asked) == samples
    assert (True in asked) == ("window" in given_)
    needed = samples_needed(np.dtype(dtype), Settings(**given_), detecting=True)
    assert sorted(needed) == sorted(asked)


@pytest.mark.parametrize(
    ("window", "told"),
    [((0, 300), "0% of the stack black and 70% white"), ((995, 2000), "100% of the stack black")],
)
def test_a_window_that_leaves_little_is_warned_of(window, told):
    def values(*, finest):
        return np.arange(1000, dtype=np.uint16)

    settings = Settings(window=window)
    (doubt,) = choose_contrast(np.dtype("uint16"), settings, values, detecting=False).doubts
    assert f"--window {window[0]} {window[1]} makes {told}" in doubt
    assert "nearly all of it lies between 4 and 994" in doubt
