"""Slices that cannot be read: tried again, named all at once, interpolated."""

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from zarrmask.errors import StackError
from zarrmask.stack import UnreadableError, anchors, bridged, open_source, too_many, unreadable
from zarrmask.stack.bridged import between

Folder = Callable[..., Path]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tries follow each other at once."""
    monkeypatch.setattr(unreadable, "PAUSES", (0.02, 0.02, 0.02, 0.02))


def spoil_last_strip(path: Path) -> None:
    """Damage a compressed TIFF in its last strip alone; its header, size and times stay."""
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        offset, count = page.dataoffsets[-1], page.databytecounts[-1]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)


@pytest.mark.usefixtures("quick")
def test_all_slices_that_cannot_be_read_are_named(tiff_folder: Folder) -> None:
    folder = tiff_folder()
    source = open_source(folder)
    (folder / "scan2_9.tif").unlink()
    (folder / "scan2_11.tif").write_bytes((folder / "scan2_11.tif").read_bytes()[:-100])
    with pytest.raises(UnreadableError) as caught:
        source[:]
    assert list(caught.value.why) == [9, 11]
    assert caught.value.why[9] == "No such file or directory"
    first, second = str(caught.value).splitlines()
    assert f"{folder}/scan2_9.tif: slice 9 cannot be read: No such file" in first
    assert f"{folder}/scan2_11.tif: slice 11 cannot be read: it ends at byte" in second
    assert (caught.value.path, caught.value.shape) == (source.path, source.shape)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.why) == (str(caught.value), caught.value.why)


def test_what_passes_is_tried_again(tiff_folder: Folder, volume: np.ndarray) -> None:
    folder = tiff_folder()
    source = open_source(folder)
    path = folder / "scan2_10.tif"
    path.rename(folder / "away")
    back = threading.Timer(0.4, (folder / "away").rename, [path])
    back.start()
    np.testing.assert_array_equal(source[:], volume)
    back.join()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (OSError(5, "Input/output error"), 5),
        (ValueError("corrupt"), 2),
        (FileNotFoundError(2, "No such file"), 2),
        (StackError("tried 8 times"), 1),
    ],
)
def test_how_often_slices_are_tried(error: Exception, tries: int) -> None:
    read = Counter[int]()

    def fail(index: int) -> None:
        read[index] += 1
        if index % 2:
            raise error

    assert unreadable.try_each(fail, range(4)) == {1: error, 3: error}
    assert read == {0: 1, 1: tries, 2: 1, 3: tries}


def test_what_a_disk_says_is_tried_again_for_a_quarter_of_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)

    def fail(index: int) -> None:
        raise OSError(5, "Input/output error")

    assert len(unreadable.try_each(fail, range(300))) == 300
    assert sum(slept) == 15


@pytest.mark.usefixtures("quick")
def test_a_chunk_that_cannot_be_read_names_all_its_slices(tmp_path: Path) -> None:
    voxels = np.arange(7 * 8 * 8, dtype="u2").reshape(7, 8, 8)
    array = zarr.create_array(tmp_path / "a", shape=(7, 8, 8), chunks=(2, 4, 4), dtype="u2")
    array[:] = voxels
    source = open_source(tmp_path / "a")
    before, without = source.fingerprint(), source.fingerprint([2])
    (tmp_path / "a" / "c" / "1" / "0" / "1").write_bytes(b"torn")
    assert source.fingerprint() != before
    assert source.fingerprint([2]) == source.fingerprint([3]) == without
    with pytest.raises(UnreadableError, match=r"slices 2 to 3, rows 0 to 3.*: c/1/0/1") as caught:
        source[3:6, :4]
    assert list(caught.value.why) == [2, 3]
    np.testing.assert_array_equal(source[:, 4:], voxels[:, 4:])
    np.testing.assert_array_equal(source[::2, :, :4], voxels[::2, :, :4])
    healed = bridged(source, [2, 3])[:]
    np.testing.assert_array_equal(healed[2], np.floor((voxels[1] * 2.0 + voxels[4]) / 3 + 0.5))
    np.testing.assert_array_equal(healed[3], np.floor((voxels[1] + voxels[4] * 2.0) / 3 + 0.5))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (Path.unlink, "it is not there"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated"),
        (lambda path: tifffile.imwrite(path, np.zeros((3, 4), "u2")), "3 x 4 uint16"),
    ],
)
def test_few_bad_files_may_be_let_in(
    tiff_folder: Folder, volume: np.ndarray, spoil: Callable[[Path], Any], why: str
) -> None:
    folder = tiff_folder()
    whole = open_source(folder)
    spoil(folder / "scan2_10.tif")
    with pytest.raises(StackError, match=r"missing slice number: 10|scan2_10\.tif: "):
        open_source(folder)
    source = open_source(folder, allow_unreadable=True)
    assert source.shape == volume.shape
    assert source.missing == ()
    assert list(source.unreadable) == [10]
    assert source.unreadable[10].startswith(why)
    assert source.fingerprint([10]) == whole.fingerprint([10])
    with pytest.raises(UnreadableError, match="slice 10 cannot be read"):
        source[1:3]
    expected = volume.copy()
    expected[2] = (volume[1].astype(int) + volume[3] + 1) // 2
    np.testing.assert_array_equal(bridged(source, [10])[:], expected)


def test_many_bad_files_are_refused(tiff_folder: Folder) -> None:
    folder = tiff_folder(data=np.zeros((12, 3, 4), "u2"))
    for number in range(9, 18):
        (folder / f"scan2_{number}.tif").unlink()
    with pytest.raises(StackError, match="9 slices in a row cannot be read") as caught:
        open_source(folder, allow_unreadable=True)
    assert "9 missing slice numbers: 9-17" in str(caught.value)


REGIONS = st.tuples(st.integers(0, 11), st.integers(1, 12), st.integers(0, 4), st.integers(1, 3))


@given(
    bad=st.sets(st.integers(0, 11), max_size=8),
    missing=st.sets(st.integers(0, 11), max_size=3),
    region=REGIONS,
    dtype=st.sampled_from(["u1", "u2", "f4"]),
)
def test_a_mended_stack_is_one_interpolated_beforehand(
    tmp_path_factory: pytest.TempPathFactory,
    bad: set[int],
    missing: set[int],
    region: tuple[int, int, int, int],
    dtype: str,
) -> None:
    bad -= missing
    if len(bad | missing) == 12 or 0 in missing or 11 in missing:
        return
    folder = tmp_path_factory.mktemp("stack")
    rng = np.random.default_rng(7)
    voxels = (rng.random((12, 5, 6)) * (1 if dtype == "f4" else np.iinfo(dtype).max)).astype(dtype)
    for z in set(range(12)) - missing:
        tifffile.imwrite(folder / f"{z}.tif", voxels[z])
    voxels[sorted(missing)] = 0
    there = np.array([z for z in range(12) if z not in bad | missing])
    for z in bad:  # by NumPy's own interpolation, a pixel at a time
        flat = voxels[there].reshape(len(there), -1).astype(float)
        exact = np.array([np.interp(z, there, column) for column in flat.T])
        rounded = exact if dtype == "f4" else np.floor(exact + 0.5 + 1e-9)
        voxels[z] = rounded.reshape(5, 6).astype(dtype)
    source = bridged(open_source(folder, allow_missing=True), bad)
    start, size, top, step = region
    found = source[start : start + size, top:, ::step]
    np.testing.assert_allclose(
        found, voxels[start : start + size, top:, ::step], rtol=1e-6 if dtype == "f4" else 0
    )
    np.testing.assert_array_equal(source[::-step], source[:][::-step])
    if start + size <= 12:
        out = np.empty((size, 5 - top, 6), dtype)
        source.read_into(out, slice(start, start + size), slice(top, 5), slice(0, 6))
        np.testing.assert_array_equal(out, source[start : start + size, top:])


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(1, 20), st.integers(1, 20))
def test_between_is_rounded_half_up(before: int, behind: int, step: int, rest: int) -> None:
    found = between(np.uint16([before]), np.uint16([behind]), step, step + rest)
    exact = before * rest + behind * step  # times step + rest
    assert 2 * exact - (step + rest) < 2 * int(found[0]) * (step + rest) <= 2 * exact + step + rest


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_anchors_are_the_nearest_that_are_there(bad: set[int], missing: set[int]) -> None:
    there = sorted(set(range(31)) - bad - missing)
    for index, (before, behind) in anchors(bad, missing, 31).items():
        assert before == max((z for z in there if z < index), default=None)
        assert behind == min((z for z in there if z > index), default=None)


def test_how_many_are_too_many() -> None:
    assert too_many(range(8), 20) is None
    assert too_many([*range(5), *range(6, 10)], 20) == (
        "9 of 20 slices cannot be read, and no more than 8 are interpolated"
    )
    assert too_many(range(0, 600, 2), 30_000) is None
    assert "301 of 30,000" in str(too_many(range(0, 602, 2), 30_000))
    assert "9 slices in a row" in str(too_many(range(50, 59), 30_000))
