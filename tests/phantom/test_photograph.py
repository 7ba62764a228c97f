import numpy as np
import pytest

from zarrmask.phantom.photograph import photograph


@pytest.mark.parametrize("shape", [(40, 30), (9, 64), (3, 2)])
def test_slices_of_any_size_become_8_bits(shape):
    image = np.random.default_rng(0).random(shape, np.float32)
    for seed in range(60):
        before = image.copy()
        stored = photograph(np.random.default_rng(seed), image)
        assert stored.shape == shape
        assert stored.dtype == np.uint8
        assert np.array_equal(image, before)
        assert np.array_equal(stored, photograph(np.random.default_rng(seed), image))


def test_some_are_drawn_over_in_white_and_in_black():
    plain = np.full((120, 150), 0.5, np.float32)
    stored = [photograph(np.random.default_rng(seed), plain) for seed in range(400)]
    marked = [image for image in stored if int(image.max()) - int(image.min()) > 20]
    assert 0.12 < len(marked) / len(stored) < 0.25
    for value in (255, 0):
        assert sum((image == value).any() for image in marked) > 5


def test_some_are_stretched_until_their_extremes_are_lost():
    ramp = np.linspace(0.3, 0.6, 100 * 90, dtype=np.float32).reshape(100, 90)
    lost = [
        min((stored == 0).mean(), (stored == 255).mean())
        for stored in (photograph(np.random.default_rng(seed), ramp) for seed in range(200))
    ]
    assert 0.1 < np.mean(np.array(lost) > 0.005) < 0.4
    assert max(lost) < 0.06
