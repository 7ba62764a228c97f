"""Grey values of what was kept and removed."""

import numpy as np
import pytest
import zarr

from zarrmask.report import greys
from zarrmask.report.greys import look_through


def stored(path, array, chunks=(4, 16, 16)):
    out = zarr.create_array(path, shape=array.shape, chunks=chunks, dtype=array.dtype)
    out[...] = array
    return out


@pytest.fixture(params=["uint8", "uint16"])
def level(request, tmp_path):
    random = np.random.default_rng(0)
    most = np.iinfo(request.param).max
    grey = random.integers(0, most, (30, 40, 50), endpoint=True).astype(request.param)
    mask = (random.random(grey.shape) < 0.3) * np.uint8(255)
    return stored(tmp_path / "grey", grey), stored(tmp_path / "mask", mask)


def test_every_voxel_is_counted_on_its_side_of_the_mask(level):
    grey, mask = level
    found, taken = look_through(*level, 5, 100, 2, 99, only_masked=False)
    voxels, inside = np.asarray(grey), np.asarray(mask) > 0
    for n in range(30):
        expected, _ = np.histogram(voxels[n][inside[n]], found.edges)
        np.testing.assert_array_equal(found.kept[n], expected)
    np.testing.assert_array_equal(found.removed, np.histogram(voxels[~inside], found.edges)[0])
    assert found.starts.tolist() == list(range(100, 160, 2))
    assert found.steps_of(np.array([0, 100, 101, 102, 159, 999])).tolist() == [0, 0, 0, 1, 29, 29]
    assert list(taken) == [1, 8, 15, 21, 28]
    for z, (image, where, _) in taken.items():
        np.testing.assert_array_equal(image, voxels[z])
        np.testing.assert_array_equal(where, inside[z])


def test_of_the_masked_stack_nothing_is_known_to_be_removed(level):
    found, _ = look_through(*level, 2, 0, 1, 99, only_masked=True)
    assert not found.removed.any()
    assert found.kept.any()
    assert found.like("air").tolist() == [0.0] * 30


def test_what_is_read_is_bounded_whatever_the_level(level, monkeypatch):
    monkeypatch.setattr(greys, "MOST", 8000)
    monkeypatch.setattr(greys, "LAYER", 6000)
    found, taken = look_through(*level, 99, 0, 1, 99, only_masked=False)
    read = int(found.kept.sum() + found.removed.sum())
    assert 4000 <= read <= 8000 + 6000  # begun layers are read whole
    assert len(taken) == read // 2000


def test_steps_are_put_together_where_there_are_many(level, monkeypatch):
    whole, _ = look_through(*level, 2, 0, 1, 99, only_masked=False)
    monkeypatch.setattr(greys, "STEPS", 7)
    found, _ = look_through(*level, 2, 0, 1, 99, only_masked=False)
    assert found.starts.tolist() == [0, 5, 10, 15, 20, 25]
    np.testing.assert_array_equal(found.kept, whole.kept.reshape(6, 5, -1).sum(axis=1))


def test_the_span_holds_nearly_all(level):
    found, _ = look_through(*level, 2, 0, 1, 99, only_masked=False)
    low, high = found.span(only_kept=False)
    top = found.edges[-1]
    assert low == pytest.approx(0.01 * top, abs=0.01 * top)
    assert high == pytest.approx(0.99 * top, abs=0.01 * top)


def test_a_volume_of_one_value_has_a_span(tmp_path):
    grey = stored(tmp_path / "grey", np.full((3, 9, 9), 77, np.uint16))
    mask = stored(tmp_path / "mask", np.zeros((3, 9, 9), np.uint8))
    for only_masked in (True, False):
        found, _ = look_through(grey, mask, 2, 0, 1, 99, only_masked=only_masked)
        low, high = found.span(only_kept=only_masked)
        assert low < high
        assert np.isnan(found.like("case")).all()
