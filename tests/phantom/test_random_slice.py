import numpy as np
import pytest

from zarrmask.phantom import simulate


def test_equal_states_give_equal_slices():
    (image, pieces), (again, pieces_again) = (
        simulate(np.random.default_rng(5), 120) for _ in range(2)
    )
    assert np.array_equal(image, again)
    assert len(pieces) == len(pieces_again)


@pytest.mark.parametrize("seed", range(40))
def test_every_slice_is_well_formed(seed):
    image, pieces = simulate(np.random.default_rng(seed), (96, 130))
    assert image.shape == (96, 130)
    assert image.dtype == np.uint8
    for piece in pieces:
        assert piece.shape == image.shape
        assert piece.dtype == bool
        assert piece.any()
    assert np.sum(pieces, axis=0).max(initial=0) <= 1  # pieces do not overlap


def test_the_shorter_side_is_as_asked():
    for seed in range(8):
        assert min(simulate(np.random.default_rng(seed), 100)[0].shape) == 100


def test_empty_slices_can_be_asked_for():
    image, pieces = simulate(np.random.default_rng(0), (80, 90), empty=1.0)
    assert pieces == []
    assert image.shape == (80, 90)


def test_slices_are_unlike_each_other():
    areas = [
        sum(piece.mean() for piece in simulate(np.random.default_rng(seed), (80, 110))[1])
        for seed in range(30)
    ]
    assert np.std(areas) > 0.1


def test_what_is_found_near_ends_can_be_asked_for():
    def covered(ends):
        slices = (
            simulate(np.random.default_rng(seed), (80, 110), empty=0.0, ends=ends)
            for seed in range(60)
        )
        return np.mean([sum(piece.mean() for piece in pieces) for _, pieces in slices])

    assert covered(1.0) < 0.95 * covered(0.25)  # of C shapes and pieces less is left
