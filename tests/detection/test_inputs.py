import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from zarrmask.detection.inputs import NetworkInput, to_8bit
from zarrmask.errors import SettingsError

lengths = st.integers(1, 60)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 2000), st.integers(1, 3000))
def test_the_short_side_is_set_unless_the_long_one_gets_too_long(height, width, least, most):
    shape = NetworkInput(least, most).shape(height, width)
    assert min(shape) >= 1
    assert max(shape) <= most
    short, long = min(height, width), max(height, width)
    if least * long / short < most - 0.5:
        assert min(shape) == least
        assert max(shape) == int(long * (least / short) + 0.5)
    elif least * long / short > most + 0.5:
        assert max(shape) == most


@pytest.mark.parametrize(
    ("slice_shape", "seen"),
    [
        ((1400, 1400), (800, 800)),
        ((900, 1400), (800, 1244)),
        ((1400, 900), (1244, 800)),
        ((500, 2000), (333, 1333)),
        ((100, 120), (800, 960)),
        ((8000, 8096), (800, 810)),
    ],
)
def test_sizes_that_detectron2_gives(slice_shape, seen):
    assert NetworkInput(800, 1333).shape(*slice_shape) == seen


def test_a_size_of_zero_leaves_the_slice_as_it_is():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(NetworkInput(0, 1333).prepare(image), image)


@given(st.data(), lengths, lengths)
def test_prepare_is_pillow_s_bilinear_filter(data, height, width):
    image = data.draw(arrays(np.uint8, (height, width, 3)))
    network_input = NetworkInput(20, 60)
    prepared = network_input.prepare(image)
    rows, columns = network_input.shape(height, width)
    expected = Image.fromarray(image, "RGB").resize((columns, rows), Image.Resampling.BILINEAR)
    assert np.array_equal(prepared, np.asarray(expected))


@given(st.data(), lengths, lengths)
def test_grey_is_resized_as_three_equal_channels(data, height, width):
    image = data.draw(arrays(np.uint8, (height, width)))
    grey = NetworkInput(20, 60).prepare(image)
    colour = NetworkInput(20, 60).prepare(np.repeat(image[..., None], 3, axis=2))
    assert grey.ndim == 2
    assert np.array_equal(colour, np.repeat(grey[..., None], 3, axis=2))


def test_a_view_of_a_larger_array_is_resized_too():
    image = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    view = image[::2, 5::3]
    prepare = NetworkInput(10, 60).prepare
    assert np.array_equal(prepare(view), prepare(view.copy()))


every_grey = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def test_the_seed_takes_the_high_byte():
    assert np.array_equal(to_8bit(every_grey), every_grey // 256)
    assert to_8bit(every_grey).dtype == np.uint8
    eight = every_grey.astype(np.uint8)
    assert np.array_equal(to_8bit(eight, "seed"), eight)


@given(st.floats(-1000, 70_000), st.floats(0.5, 70_000), st.sampled_from([np.uint8, np.uint16]))
def test_a_window_is_linear_rounded_and_clipped(low, width, dtype):
    image = np.arange(0, np.iinfo(dtype).max + 1, 7).astype(dtype)
    high = low + width
    exact = np.clip((image.astype(float) - low) / (high - low) * 255, 0, 255)
    seen = to_8bit(image, (low, high))
    assert seen.dtype == np.uint8
    assert np.abs(seen - exact).max() <= 0.5 + 1e-6
    assert (np.diff(seen.astype(int)) >= 0).all()


def test_what_cannot_be_taken_to_8_bits():
    with pytest.raises(SettingsError, match="float32"):
        to_8bit(np.zeros((2, 2), np.float32))
    with pytest.raises(SettingsError, match="LO below HI"):
        to_8bit(every_grey, (500, 500))
