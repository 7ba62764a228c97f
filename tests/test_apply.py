"""Masks that are given, on a real cluster of processes."""

import json
from math import ceil
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given as given_by
from hypothesis import strategies as st

import zarrmask as package
from zarrmask.errors import OutputError, SettingsError, StackError
from zarrmask.given.apply import _warn, apply
from zarrmask.given.filling import MASKS_A_LOOK, copying_of, parts
from zarrmask.given.masks import GivenMasks, open_given
from zarrmask.masking import KeyframeStore, enlarged_mask
from zarrmask.progress import Reporter
from zarrmask.pyramid import write_metadata
from zarrmask.stack import open_source


def level(out, name, n=0):
    return zarr.open_array(out / f"{name}.zarr" / str(n), mode="r")[:]


def ellipse(shape, number):
    """A mask that drifts with its number."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    y, x = (y + 0.5) / shape[0] - 0.5, (x + 0.5) / shape[1] - 0.45 - 0.002 * (number - 100)
    return ((y / 0.3) ** 2 + (x / 0.25) ** 2 < 1).astype(np.uint8) * 255


def painted(folder, numbers, shape=(150, 170), name="{:05d}.png"):
    folder.mkdir()
    for number in numbers:
        cv2.imwrite(str(folder / name.format(number)), ellipse(shape, number))
    return folder


@pytest.fixture(scope="module")
def run(cluster, stack, tmp_path_factory):
    """A run that holds masks: its folder and its record."""
    out = tmp_path_factory.mktemp("apply") / "out"
    options = {"every": 7, "dilate": 5, "propagate": "hold", "scheduler": cluster}
    return out, package.run(stack, out, **options)


def test_masks_are_held_over_gaps(stack, cluster, tmp_path):
    """The replaced scripts' rule, by numbers: also from before a range, and nothing before all."""
    painted(tmp_path / "masks", [102, 110, 111])
    out = tmp_path / "out"
    record = apply(stack, tmp_path / "masks", out, z="100:120", voxel_size=8, scheduler=cluster)
    nothing = np.zeros((150, 170), np.uint8)
    by_number = {n: ellipse((150, 170), n) for n in (102, 110, 111)}
    expected, held = [], nothing
    for number in range(100, 120):
        held = by_number.get(number, held)
        expected.append(held)
    np.testing.assert_array_equal(level(out, "mask"), expected)
    volume = level(out, "volume")
    np.testing.assert_array_equal(level(out, "masked"), np.where(expected, volume, 0))
    assert (out / "report.html").exists()
    assert (out / "scroll.khprj").exists()
    assert any("slices 100 to 101 come before" in warning for warning in record["warnings"])
    assert not any("come after the last" in warning for warning in record["warnings"])
    assert record["masks"]["count"] == 3
    assert record["voxels"]["kept"] == np.count_nonzero(expected)
    apply(stack, tmp_path / "masks", tmp_path / "later", z="113:118", scheduler=cluster)
    np.testing.assert_array_equal(level(tmp_path / "later", "mask"), expected[13:18])


def test_the_masks_of_a_run_give_the_run(run, stack, cluster, tmp_path):
    """As PNGs before dilation; or all of them, as they are in its folder."""
    out, record = run
    store = KeyframeStore(out / "keyframes.zarr")
    (tmp_path / "masks").mkdir()
    for number, mask in zip(store.numbers(), store.masks()[:], strict=True):
        cv2.imwrite(str(tmp_path / "masks" / f"{number}.png"), mask)
    given = apply(stack, tmp_path / "masks", tmp_path / "a", dilate=5, scheduler=cluster)
    again = apply(stack, out, tmp_path / "b", scheduler=cluster)
    assert again["masks"]["count"] == len(store.numbers())
    for name in ("volume", "mask", "masked"):
        for n in range(2):
            np.testing.assert_array_equal(level(tmp_path / "a", name, n), level(out, name, n))
            np.testing.assert_array_equal(level(tmp_path / "b", name, n), level(out, name, n))
    assert given["voxels"] == again["voxels"] == record["voxels"]
    masks = len(store.numbers())
    assert given["plan"]["tasks"]["copying masks"] == masks
    assert given["plan"]["tasks"]["looking at masks"] == ceil(masks / MASKS_A_LOOK)


def test_label_volumes_and_erosion(stack, cluster, tmp_path):
    labels = np.array([ellipse((150, 170), n) for n in range(100, 123)]).astype(np.int64) // 60
    zarr.save(tmp_path / "labels.zarr", labels)
    tifffile.imwrite(
        tmp_path / "labels.tif", labels[5:9].astype(np.int32), photometric="minisblack"
    )
    out = tmp_path / "a"
    apply(stack, tmp_path / "labels.zarr", out, erode="40um", voxel_size=8, scheduler=cluster)
    kernel = np.ones((5, 5), np.uint8)
    expected = [cv2.erode((label > 0).astype(np.uint8) * 255, kernel) for label in labels]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    with pytest.raises(StackError, match=r"4 masks and the stack 23 slices.*--first"):
        apply(stack, tmp_path / "labels.tif", tmp_path / "b", scheduler=cluster)
    options = {"z": "105:109", "first": 105, "volume": False, "scheduler": cluster}
    apply(stack, tmp_path / "labels.tif", tmp_path / "b", **options)
    np.testing.assert_array_equal(level(tmp_path / "b", "mask") > 0, labels[5:9] > 0)
    assert not (tmp_path / "b" / "volume.zarr").exists()


def test_masks_of_proxies_are_enlarged(stack, cluster, tmp_path):
    painted(tmp_path / "masks", range(100, 123, 11), shape=(75, 85))
    apply(stack, tmp_path / "masks", tmp_path / "out", scheduler=cluster)
    true = ellipse((150, 170), 111) > 0
    mask = level(tmp_path / "out", "mask")[11] > 0
    assert (mask & true).sum() / (mask | true).sum() > 0.98


def test_masks_found_on_proxies_are_applied_where_the_slices_are(stack, cluster, tmp_path):
    """As docs/images.md says: every fourth slice, half as large; 121 and 122 hold what 120 has."""
    small, found, out = tmp_path / "small", tmp_path / "found", tmp_path / "out"
    package.proxy(stack, small, side=85, every=4, scheduler=cluster)
    assert sorted(int(file.stem) for file in small.glob("*.jpg")) == [*range(100, 123, 4)]
    package.run(small, found, every=1, allow_missing=True, scheduler=cluster)
    apply(stack, found, out, scheduler=cluster)
    seen = level(out, "mask") > 0
    assert seen.shape == (23, 150, 170)
    for n, mask in enumerate(level(found, "mask") > 0):  # between proxies, too
        large = mask.repeat(2, 0).repeat(2, 1)
        assert (seen[n] & large).sum() / (seen[n] | large).sum() > 0.97
    np.testing.assert_array_equal(seen[21:], seen[[20, 20]])


@pytest.mark.parametrize("scale", [3, 8])
def test_an_enlarged_edge_is_smooth(scale):
    small, true = ellipse((100, 110), 100), ellipse((100 * scale, 110 * scale), 100) > 0
    smooth = enlarged_mask(small, true.shape) > 0
    teeth = np.repeat(np.repeat(small, scale, 0), scale, 1) > 0
    assert (smooth ^ true).sum() < 0.8 * (teeth ^ true).sum()


def test_what_lies_far_from_an_edge_is_enlarged_too():
    """Farther than a field's distances reach."""
    small = np.zeros((8, 6000), np.uint8)
    small[:, :3000] = 255
    large = small.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(enlarged_mask(small, large.shape), large)


def test_a_stopped_work_goes_on(stack, cluster, tmp_path):
    painted(tmp_path / "masks", [100, 110])

    class Stopping(Reporter):
        def stage(self, name, *arguments, **options):
            if name == "writing":
                raise KeyboardInterrupt
            return super().stage(name, *arguments, **options)

    arguments = stack, tmp_path / "masks", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        apply(*arguments, scheduler=cluster, reporter=Stopping())
    with pytest.raises(OutputError, match="--dilate"):
        apply(*arguments, dilate=3, scheduler=cluster)
    record = apply(*arguments, scheduler=cluster)
    assert record["resumed"]
    assert "copying masks" not in {stage["name"] for stage in record["stages"]}
    np.testing.assert_array_equal(level(tmp_path / "out", "mask")[9], ellipse((150, 170), 100))
    before = (tmp_path / "out" / "run.json").read_bytes()
    apply(*arguments, scheduler=cluster)
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_masks_that_do_not_fit(run, stack, tmp_path):
    painted(tmp_path / "away", range(3), shape=(90, 170))
    with pytest.raises(StackError, match=r"(?s)slices 0 to 2; the stack's are 100.*90 x 170"):
        apply(stack, tmp_path / "away", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StackError, match="holds no slices"):
        apply(stack, tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty/00100.jpg").touch()
    with pytest.raises(StackError, match=r"1 .jpg.* JPEG blurs the edges of masks: save them as"):
        apply(stack, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(StackError, match="slices of a scan"):
        apply(stack, stack, tmp_path / "out")
    painted(tmp_path / "fine", [100])
    painted(tmp_path / "larger", [100], shape=(300, 340))
    with pytest.raises(StackError, match="300 x 340 pixels, more than the slices, 150 x 170"):
        apply(stack, tmp_path / "larger", tmp_path / "out")
    with pytest.raises(StackError, match=r"slice 120, .*slices 100 to 119 have none"):
        apply(stack, painted(tmp_path / "late", [120]), tmp_path / "out", z=":120")
    with pytest.raises(SettingsError, match="--dilate or --erode"):
        apply(stack, tmp_path / "fine", tmp_path / "out", dilate=1, erode=1)
    with pytest.raises(SettingsError, match="no settings every"):
        apply(stack, tmp_path / "fine", tmp_path / "out", every=3)
    with pytest.raises(OutputError, match="would overwrite"):
        apply(stack, run[0] / "mask.zarr", run[0])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("numbers", "told"), [([100, 110], 0), ([100, 104], 1), ([100], 1)])
def test_a_mask_that_is_held_for_longer_than_any_is_told_of(numbers, told):
    reporter = Reporter.quiet()
    _warn(reporter, 100, 119, np.array(numbers), np.array([121, 122]), [])
    assert sum("come after the last mask" in warning for warning in reporter.warnings) == told
    assert any("2 masks of slices that the stack does not" in said for said in reporter.warnings)


def test_the_command(stack, cluster, zarrmask, tmp_path):
    painted(tmp_path / "masks", [100])
    options = ["--dilate", "2", "--z", "100:104", "--scheduler", cluster]
    code, printed, _ = zarrmask("apply", stack, "masks", "out", *options)
    assert (code, printed.startswith("kept ")) == (0, True)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["dilate"] == 2
    grown = cv2.dilate(ellipse((150, 170), 100), np.ones((3, 3), np.uint8))
    np.testing.assert_array_equal(level(tmp_path / "out", "mask")[3], grown)
    assert zarrmask("info", "out")[0] == 0
    code, printed, _ = zarrmask("info", "out/keyframes.zarr")
    assert (code, f"zarrmask info {tmp_path / 'out'}" in printed) == (0, True)


@given_by(
    depth=st.sampled_from([1, 2, 9, 40]),
    rows=st.sampled_from([64, 512, 600, 2000]),
    chosen=st.sets(st.integers(0, 39), min_size=1),
    same=st.booleans(),
)
def test_parts_cover_all_masks_once(depth, rows, chosen, same):
    height = 1700
    source = SimpleNamespace(
        block=(depth, min(rows, height), 100), shape=(40, height, 1300), dtype=np.dtype("i8")
    )
    given = GivenMasks(source, np.array(sorted(chosen)), np.array(sorted(chosen)) + 7)
    shape = (height, 1300) if same else (2 * height, 2600)
    seen = np.zeros((len(chosen), shape[0]), int)
    for part in parts(given, shape):
        seen[part.first : part.stop, part.top : part.bottom] += 1
        assert part.top % 512 == 0
        assert part.columns == 1300 or part.columns % 100 == 0  # whole chunks
    assert (seen == 1).all()


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_chunks_of_a_scroll_of_labels_are_decoded_once(itemsize):
    """In bands of 512 rows, of chunks of 128 slices: 512 MB of masks at most."""
    side = 8096
    source = SimpleNamespace(
        block=(128, 128, 128), shape=(300, side, side), dtype=np.dtype(f"u{itemsize}")
    )
    given = GivenMasks(source, np.arange(300), np.arange(300))
    there = list(parts(given, (side, side)))
    assert len(there) == 3 * 16
    assert {part.first for part in there} == {0, 128, 256}
    copying = copying_of(given, (side, side))
    assert copying.bytes < 1.2e9
    assert (copying.copies, copying.looks) == (3 * 16, 38)


def image(path, shape, *, origin=(0.0, 0.0, 0.0), voxel_size=None):
    """An OME-Zarr of zeros that begins somewhere."""
    group = zarr.open_group(path, mode="w", zarr_format=2)
    group.create_array("0", shape=shape, chunks=shape, dtype=np.uint8)
    write_metadata(path, "mask", 1, voxel_size=voxel_size, origin=origin)
    return path


def test_masks_go_where_their_image_says_that_they_lie(tmp_path):
    whole = open_source(image(tmp_path / "whole.zarr", (30, 40, 50)))
    part = image(tmp_path / "part.zarr", (8, 40, 50), origin=(11.0, 0.0, 0.0))
    assert open_given(part, whole).numbers.tolist() == list(range(11, 19))
    assert open_given(part, whole, first=3).numbers.tolist() == list(range(3, 11))
    cut = open_source(image(tmp_path / "cut.zarr", (30, 40, 50), origin=(4.0, 2.0, 3.0)))
    beside = image(tmp_path / "beside.zarr", (8, 40, 50), origin=(11.0, 2.0, 3.0))
    assert open_given(beside, cut).numbers.tolist() == list(range(7, 15))
    same = image(tmp_path / "same.zarr", (30, 40, 50))  # says nothing
    assert open_given(same, cut).numbers.tolist() == list(range(30))


def test_masks_whose_numbers_are_in_doubt_are_refused_until_it_is_said_whose_they_are(tmp_path):
    masks = painted(tmp_path / "masks", range(1, 31), shape=(40, 50))
    whole = open_source(image(tmp_path / "whole.zarr", (30, 40, 50)))
    with pytest.raises(
        StackError, match=r"numbered 1 to 30, but the slices 0 to 29.*--first 0 .*1"
    ):
        open_given(masks, whole)
    assert open_given(masks, whole, first=0).numbers.tolist() == list(range(30))
    assert open_given(masks, whole, first=1).numbers.tolist() == list(range(1, 31))
    cut = open_source(image(tmp_path / "cut.zarr", (10, 40, 50), origin=(5.0, 0.0, 0.0)))
    with pytest.raises(StackError, match=r"begins at slice 5 of another.*--first -4 .*--first 1 "):
        open_given(masks, cut)
    assert open_given(masks, cut, of_run=True).numbers[0] == 1
    assert open_given(masks, cut, first=-4).numbers[:5].tolist() == [-4, -3, -2, -1, 0]


def test_masks_of_larger_voxels_lie_as_far_apart(tmp_path):
    whole = open_source(image(tmp_path / "whole.zarr", (9, 40, 60), voxel_size=8))
    half = image(tmp_path / "half.zarr", (5, 20, 30), voxel_size=16)
    assert open_given(half, whole).numbers.tolist() == [0, 2, 4, 6, 8]
    part = image(tmp_path / "part.zarr", (2, 20, 30), voxel_size=16, origin=(3.0, 0.0, 0.0))
    assert open_given(part, whole).numbers.tolist() == [6, 8]
    unplaced = image(tmp_path / "unplaced.zarr", (2, 20, 30), voxel_size=16)
    with pytest.raises(StackError, match="unclear whose they are"):
        open_given(unplaced, whole)
    assert open_given(unplaced, whole, first=4).numbers.tolist() == [4, 6]
    for size in (1, 16):  # which nobody set
        same = image(tmp_path / f"{size}.zarr", (3, 40, 60), voxel_size=size)
        assert open_given(same, whole, first=4).numbers.tolist() == [4, 5, 6]


def test_labels_of_many_objects_are_no_scan(tmp_path):
    whole = open_source(image(tmp_path / "whole.zarr", (2, 40, 60)))
    labels = np.arange(2 * 40 * 60, dtype=np.int32).reshape(2, 40, 60)
    tifffile.imwrite(tmp_path / "labels.tif", labels, metadata={"axes": "ZYX"})
    assert len(open_given(tmp_path / "labels.tif", whole).numbers) == 2
    tifffile.imwrite(tmp_path / "scan.tif", labels.astype(np.uint16), metadata={"axes": "ZYX"})
    with pytest.raises(StackError, match="slices of a scan"):
        open_given(tmp_path / "scan.tif", whole)


def test_masks_of_a_part_of_each_slice_are_no_small_ones(tmp_path):
    whole = open_source(image(tmp_path / "whole.zarr", (9, 40, 60), voxel_size=8))
    placed = image(tmp_path / "placed.zarr", (9, 20, 30), origin=(0.0, 10.0, 15.0))
    with pytest.raises(StackError, match=r"\+10 rows and \+15 columns"):
        open_given(placed, whole)
    plain = image(tmp_path / "plain.zarr", (9, 20, 30), voxel_size=8)
    with pytest.raises(StackError, match="of the same voxel size"):
        open_given(plain, whole)
    half = image(tmp_path / "half.zarr", (9, 20, 30), voxel_size=16)
    assert open_given(half, whole).shape == (20, 30)
    rows, columns = slice(10, 30), slice(15, 45)
    assert open_given(placed, whole, crop=(rows, columns)).crop == (rows, columns)


def test_the_first_slice_of_a_runs_masks_can_be_said(run, stack):
    out, record = run
    source = open_source(stack)
    assert open_given(out, source).numbers[0] == record["z"][0]
    assert open_given(out, source, first=103).numbers[0] == 103
