"""What is read of a run to show it."""

from dataclasses import replace

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.errors import OutputError
from zarrmask.report import planes, views
from zarrmask.report.greys import spread
from zarrmask.report.keyframes import read_keyframes
from zarrmask.report.levels import open_levels
from zarrmask.report.planes import outlines
from zarrmask.report.survey import survey_mask
from zarrmask.report.views import read_views


@given(st.integers(1, 30_000), st.integers(1, 9))
def test_slices_are_spread_from_end_to_end(depth, count):
    places = spread(depth, count)
    assert places == sorted(set(places))
    assert 1 <= len(places) <= count
    assert all(place in range(depth) for place in places)
    if depth >= 100 and count > 1:
        assert len(places) == count
        assert places[0] <= 0.03 * depth
        assert places[-1] >= 0.96 * depth


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_outlines_run_within_the_mask_and_around_all_of_it(seed, height, width):
    inside = np.random.default_rng(seed).random((height, width)) < 0.4
    lines = outlines(inside)
    touched = np.zeros_like(inside)
    for line in lines:
        x, y = np.floor(line).astype(int).T
        touched[y, x] = True
    assert bool(lines) == bool(inside.any())
    padded = np.pad(inside, 1)
    alone = inside & ~(padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2])
    assert not (alone & ~touched).any()


def test_the_survey_on_the_finest_level_is_exact(tmp_path, fake_run):
    record = fake_run(tmp_path, (25, 41, 57))
    mask = open_levels(tmp_path / "mask.zarr")
    survey = survey_mask(mask, record["voxels"]["kept"])
    voxels = np.asarray(mask.levels[0]) > 0
    np.testing.assert_array_equal(survey.edges, np.arange(26))
    np.testing.assert_array_equal(survey.area, voxels.sum(axis=(1, 2)))
    centre = np.argwhere(voxels).mean(axis=0)
    np.testing.assert_allclose(survey.middle, centre, atol=0.51)


def test_levels_that_others_rounded_down_are_shown_as_coarse(tmp_path, fake_run, monkeypatch):
    record = fake_run(tmp_path, (25, 41, 57), levels=2)
    monkeypatch.setattr(views, "SLICE_PIXELS", 1)
    monkeypatch.setattr(planes, "SECTION_PIXELS", 1)
    monkeypatch.setattr(planes, "SUSPECT_PIXELS", 1)
    group = zarr.open_group(tmp_path / "volume.zarr", mode="r+")
    down = group["1"][:12, :20, :28]
    group.create_array("1", data=down, overwrite=True)
    shown = read_views(tmp_path, record)
    assert {plane.image.shape for plane in shown.frames} == {(20, 28)}
    assert (shown.xz.image.shape, shown.yz.image.shape) == ((12, 28), (12, 20))
    assert any(planes for _, planes in shown.suspects)


def test_the_survey_on_a_coarse_level_agrees_with_what_was_kept(tmp_path, fake_run, monkeypatch):
    record = fake_run(tmp_path, (67, 81, 93))
    monkeypatch.setattr("zarrmask.report.survey.SURVEY_VOXELS", 100_000)
    mask = open_levels(tmp_path / "mask.zarr")
    survey = survey_mask(mask, record["voxels"]["kept"])
    assert np.diff(survey.edges).max() == 2
    assert survey.edges[-1] == 67
    total = (survey.area * np.diff(survey.edges)).sum()
    assert total == pytest.approx(record["voxels"]["kept"])
    truth = (np.asarray(mask.levels[0]) > 0).sum(axis=(1, 2))
    steps = np.add.reduceat(truth, survey.edges[:-1]) / np.diff(survey.edges)
    assert np.abs(survey.area - steps).max() < 0.12 * truth.max()
    assert survey_mask(mask, None).area.sum() > survey.area.sum()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_coarsest_level_that_is_large_enough_is_shown(tmp_path, fake_run, monkeypatch, level):
    fake_run(tmp_path, (20, 90, 120))
    monkeypatch.setattr(views, "SLICE_PIXELS", 120 >> level)
    pyramid = open_levels(tmp_path / "volume.zarr")
    assert pyramid.level_for(120 >> level, (1, 2)) == level
    seen = read_views(tmp_path, {})
    for plane in seen.slices:
        expected = np.asarray(pyramid.levels[level][plane.index >> level])
        assert plane.pixel == 2**level
        assert plane.image.shape == expected.shape
        assert np.corrcoef(plane.image.ravel(), expected.ravel())[0, 1] > 0.95


def test_a_picture_without_coarse_levels_is_shrunk(tmp_path, fake_run, monkeypatch):
    fake_run(tmp_path, (5, 90, 120), levels=1)
    monkeypatch.setattr(views, "FRAME_PIXELS", 40)
    plane = read_views(tmp_path, {}).slices[0]
    assert plane.image.shape == (30, 40)
    assert plane.pixel == 3


def test_sections_cut_through_the_middle(tmp_path, fake_run):
    fake_run(tmp_path, (30, 40, 56))
    seen = read_views(tmp_path, {})
    image = np.asarray(open_levels(tmp_path / "volume.zarr").levels[0])
    for plane, cut in ((seen.xz, image[:, seen.xz.index]), (seen.yz, image[:, :, seen.yz.index])):
        assert plane.image.shape == cut.shape
        assert np.corrcoef(plane.image.ravel(), cut.ravel())[0, 1] > 0.95
    assert seen.sections == (seen.xz, seen.yz)


def test_a_long_volume_lies(tmp_path, fake_run):
    fake_run(tmp_path, (80, 40, 56))
    seen = read_views(tmp_path, {})
    assert seen.lying
    assert [plane.image.shape for plane in seen.sections] == [(56, 80), (40, 80)]
    for plane in seen.sections:
        for line in plane.outlines:
            assert (line >= 0).all()
            assert (line <= plane.image.shape[::-1]).all()


@pytest.mark.parametrize(
    ("record", "size"),
    [({}, 7.91), ({"voxel_size_um": 3.24}, 3.24), ({"input": {"voxel_size_um": 2}}, 2)],
)
def test_the_record_knows_the_voxel_size_better_than_the_pyramid(tmp_path, fake_run, record, size):
    fake_run(tmp_path)
    assert read_views(tmp_path, record).voxel_size_um == size


@pytest.mark.parametrize(
    ("voxel_size", "largest", "unit"),
    [(None, 10.0, (1, "voxels")), (None, 3e6, (1e-6, "million voxels")), (500, 3e6, (0.25, "mm²"))],
)
def test_areas_have_a_readable_unit(tmp_path, fake_run, voxel_size, largest, unit):
    fake_run(tmp_path, (3, 9, 9))
    seen = read_views(tmp_path, {})
    survey = replace(seen.survey, area=np.array([largest]))
    assert replace(seen, survey=survey, voxel_size_um=voxel_size).area_unit == unit


def test_no_unit_no_voxel_size(tmp_path, fake_run):
    fake_run(tmp_path, voxel_size_um=None)
    assert read_views(tmp_path, {}).voxel_size_um is None


def test_what_is_missing_is_named(tmp_path, fake_run):
    with pytest.raises(OutputError, match=r"mask\.zarr is not a readable OME-Zarr"):
        read_views(tmp_path, {})
    fake_run(tmp_path)
    (tmp_path / "mask.zarr" / ".zattrs").write_text('{"multiscales": []}')
    with pytest.raises(OutputError, match="Run again with --overwrite"):
        read_views(tmp_path, {})


def test_pyramids_of_two_runs_are_told_apart(tmp_path, fake_run):
    fake_run(tmp_path / "one", (6, 20, 20))
    fake_run(tmp_path / "two", (7, 20, 20))
    (tmp_path / "two" / "mask.zarr").rename(tmp_path / "two" / "old")
    (tmp_path / "one" / "mask.zarr").rename(tmp_path / "two" / "mask.zarr")
    with pytest.raises(OutputError, match="not of one run"):
        read_views(tmp_path / "two", {})


def test_what_was_found_lies_where_it_was_cropped(tmp_path, fake_run):
    """Keyframes are whole slices, whatever is written of them."""
    record = fake_run(tmp_path, (24, 40, 56), crop=((2, 38), (4, 54)))
    seen = read_views(tmp_path, record)
    planes = [plane for _, planes in seen.suspects for plane in planes if plane.found]
    assert planes
    for plane in planes:
        drawn, found = (np.concatenate(lines) for lines in (plane.outlines, plane.found))
        assert found.dtype == np.float32  # OpenCV simplifies no others
        np.testing.assert_allclose(found.min(axis=0), drawn.min(axis=0), atol=1)
        np.testing.assert_allclose(found.max(axis=0), drawn.max(axis=0), atol=1)


def test_a_mask_from_before_the_run_is_shown_where_it_begins(tmp_path, fake_run):
    record = fake_run(tmp_path)
    stored = zarr.open_array(tmp_path / "keyframes.zarr" / "z", mode="r+")
    stored[0] = 40
    seen = read_views(tmp_path, record)
    assert seen.keyframes.z.tolist()[:2] == [100, 104]


def test_keyframes_out_of_order_are_sorted_and_none_is_fine(tmp_path, fake_run):
    fake_run(tmp_path)
    assert read_keyframes(tmp_path / "nowhere", 56).z.size == 0
    found = read_keyframes(tmp_path / "keyframes.zarr", 56)
    assert found.empty_z == [108]
    assert (np.diff(found.z) > 0).all()
