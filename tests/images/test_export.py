"""Outputs as numbered images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

import zarrmask as package
from zarrmask.errors import OutputError, RoomError, SettingsError
from zarrmask.images.export import export
from zarrmask.images.numbered import ImageFormat
from zarrmask.images.slabs import Slab, pieces
from zarrmask.progress import Reporter
from zarrmask.stack import open_source


def level(out, name, n=0):
    return zarr.open_array(out / f"{name}.zarr" / str(n), mode="r")[:]


def images(folder):
    """Images by their number."""
    read = {int(path.stem): path for path in folder.iterdir() if path.suffix != ".json"}
    return {n: cv2.imread(str(read[n]), cv2.IMREAD_UNCHANGED) for n in sorted(read)}


@pytest.fixture(scope="module")
def run(cluster, stack, tmp_path_factory):
    """A finished run in chunks of 16, so that there are slabs: its folder and its record."""
    out = tmp_path_factory.mktemp("export") / "out"
    options = {"every": 7, "chunk": 16, "detect_window": (0, 30_000), "scheduler": cluster}
    return out, package.run(stack, out, **options)


@pytest.mark.parametrize("lzw", [False, True])
def test_tiffs_state_the_size_of_their_pixels(tmp_path, lzw):
    folder = tmp_path / "slices"
    folder.mkdir()
    image = np.arange(12, dtype=np.uint16).reshape(3, 4)
    for number in range(2):
        form = ImageFormat("tif", lzw=lzw, pixel=15.82)
        form.write(folder / form.name(number), image)
    source = open_source(folder)
    assert source.voxel_size == 15.82
    np.testing.assert_array_equal(source[:], [image, image])


@pytest.mark.parametrize("what", ["masked", "mask", "volume"])
@pytest.mark.parametrize(("format", "lzw"), [("tif", False), ("tif", True), ("png", False)])
def test_slices_keep_every_bit(run, cluster, tmp_path, what, format, lzw):
    out, _ = run
    told = export(out, tmp_path / "a", what=what, format=format, lzw=lzw, scheduler=cluster)
    there = images(tmp_path / "a")
    assert list(there) == list(range(100, 123))
    np.testing.assert_array_equal(np.array(list(there.values())), level(out, what))
    assert there[100].dtype == (np.uint8 if what == "mask" else np.uint16)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"export.json", *(f"{n:05d}.{format}" for n in range(100, 123))}
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "a").glob("0*"))
    if format == "tif":
        with tifffile.TiffFile(tmp_path / "a" / "00100.tif") as file:
            assert (file.pages.first.compression.name == "LZW") == lzw


def test_jpegs_show_what_the_detector_saw(run, cluster, tmp_path):
    out, _ = run
    export(out, tmp_path / "seen", what="volume", format="jpg", quality=100, scheduler=cluster)
    volume = level(out, "volume").astype(float)
    seen = np.array(list(images(tmp_path / "seen").values()))
    assert seen.dtype == np.uint8
    assert np.abs(seen - (volume * 255 / 30_000).round().clip(0, 255)).max() <= 3
    options = {"what": "volume", "format": "jpg", "window": "0 65535", "scheduler": cluster}
    export(out, tmp_path / "all", quality=100, **options)
    greys = np.array(list(images(tmp_path / "all").values()))
    assert np.abs(greys - (volume * 255 / 65535).round()).max() <= 3


def test_a_level_and_a_range(run, cluster, tmp_path):
    out, _ = run
    export(out, tmp_path / "a", level=1, z="106:", scheduler=cluster)
    there = images(tmp_path / "a")
    assert list(there) == list(range(106, 123, 2))
    np.testing.assert_array_equal(np.array(list(there.values())), level(out, "masked", 1)[3:])
    export(out, tmp_path / "b", level=1, z="107:108", scheduler=cluster)
    assert list(images(tmp_path / "b")) == [106]  # it stands for 107, too


def test_an_export_is_a_stack_again(run, cluster, tmp_path):
    out, _ = run
    export(out, tmp_path / "a", what="masked", z="103:119", lzw=True, scheduler=cluster)
    stack = package.open_stack(tmp_path / "a")
    assert stack.z.values.tolist() == list(range(103, 119))
    np.testing.assert_array_equal(stack.values, level(out, "masked")[3:19])


def test_an_export_does_not_replace_the_stack_of_its_run(run, cluster, tmp_path):
    out, _ = run
    export(out, tmp_path / "a", what="volume", scheduler=cluster)
    package.apply(tmp_path / "a", out, tmp_path / "b", volume=False, scheduler=cluster)
    before = images(tmp_path / "a")
    with pytest.raises(OutputError, match="would overwrite what is read"):
        export(tmp_path / "b", tmp_path / "a", overwrite=True, scheduler=cluster)
    assert list(images(tmp_path / "a")) == list(before)


def test_what_is_there_is_kept(run, cluster, tmp_path):
    out, _ = run
    export(out, tmp_path / "a", z=":110", scheduler=cluster)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.tif")}
    (tmp_path / "a" / "00104.tif").unlink()
    export(out, tmp_path / "a", z=":110", scheduler=cluster)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.tif")}
    assert {name for name in after if after[name] != before[name]} == {"00104.tif"}
    assert not (tmp_path / "a" / ".zarrmask").exists()
    with pytest.raises(OutputError, match=r"format: tif then, png now"):
        export(out, tmp_path / "a", z=":110", format="png", scheduler=cluster)
    export(out, tmp_path / "a", z=":104", format="png", scheduler=cluster, overwrite=True)
    assert list(images(tmp_path / "a")) == [100, 101, 102, 103]


def test_a_run_that_changes_while_it_is_exported(run, cluster, tmp_path):
    """Its chunks go before they are written anew, and read as zeros meanwhile."""
    out, _ = run
    whole = (out / "run.json").read_bytes()

    class Correcting(Reporter):
        def stage(self, *arguments, **options):
            record = {**json.loads(whole), "state": "correcting"}
            (out / "run.json").write_text(json.dumps(record))
            return super().stage(*arguments, **options)

    export(out, tmp_path / "a", z=":104", scheduler=cluster)
    (tmp_path / "a" / "00102.tif").unlink()
    try:
        with pytest.raises(OutputError, match="corrected or made anew while it was read"):
            export(out, tmp_path / "a", z=":104", scheduler=cluster, reporter=Correcting())
    finally:
        (out / "run.json").write_bytes(whole)
    assert not (tmp_path / "a" / "00102.tif").exists()
    assert (tmp_path / "a" / "00101.tif").exists()
    export(out, tmp_path / "a", z=":104", scheduler=cluster)
    assert list(images(tmp_path / "a")) == [100, 101, 102, 103]


def test_a_stack_that_serves_as_the_volume_and_has_changed(stack, cluster, tmp_path):
    volume = package.convert(stack, tmp_path / "v.zarr", chunk=16, scheduler=cluster)
    out = tmp_path / "out"
    assert package.run(volume, out, every=7, scheduler=cluster)["volume"] == str(volume)
    export(out, tmp_path / "a", what="volume", z=":2", scheduler=cluster)
    voxels = zarr.open_array(volume / "0", mode="r+")
    voxels[:] = voxels[:] // 2
    with pytest.raises(OutputError, match="has changed since the run read it"):
        export(out, tmp_path / "b", what="volume", z=":2", scheduler=cluster)
    assert not (tmp_path / "b").exists()


def test_a_killed_export_goes_on(run, tmp_path):
    out, _ = run
    command = [sys.executable, "-m", "zarrmask", "export", out, tmp_path / "a", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list(tmp_path.glob("a/*.tif")):
        time.sleep(0.01)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.tif")}
    assert 0 < len(kept) < 23
    subprocess.run(command, check=True, capture_output=True)
    there = np.array(list(images(tmp_path / "a").values()))
    np.testing.assert_array_equal(there, level(out, "masked"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "export.json",
        *(f"{n:05d}.tif" for n in range(100, 123)),
    }
    assert all((tmp_path / "a" / name).stat().st_mtime_ns == kept[name] for name in kept)


def test_what_cannot_be_exported(run, cluster, tmp_path):
    out, _ = run
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "00100.tif").write_bytes(b"somebody's")
    with pytest.raises(OutputError, match="not made by zarrmask"):
        export(out, foreign, scheduler=cluster)
    assert (foreign / "00100.tif").read_bytes() == b"somebody's"
    with pytest.raises(SettingsError, match=r"(?s)what: 'all'.*lzw goes with tif.*quality: 0"):
        export(out, tmp_path / "a", what="all", format="png", lzw=True, quality=0)
    with pytest.raises(SettingsError, match="window goes with jpg"):
        export(out, tmp_path / "a", window="0 99")
    with pytest.raises(SettingsError, match="mask has 8 bits already"):
        export(out, tmp_path / "a", what="mask", format="jpg", window="0 99")
    with pytest.raises(SettingsError, match="--level 9"):
        export(out, tmp_path / "a", level=9)
    with pytest.raises(SettingsError, match="100 to 122"):
        export(out, tmp_path / "a", z="90:110")
    with pytest.raises(OutputError, match="no finished run"):
        export(tmp_path / "nothing", tmp_path / "a")
    with pytest.raises(RoomError, match="--memory"):
        export(out, tmp_path / "a", workers=1, memory="10MB")
    assert not (tmp_path / "a").exists()


def test_no_volume_says_so(run, cluster, tmp_path):
    out = shutil.copytree(run[0], tmp_path / "out", symlinks=True)
    shutil.rmtree(out / "volume.zarr")
    with pytest.raises(OutputError, match="the stack is the volume"):
        export(out, tmp_path / "a", what="volume", scheduler=cluster)


def test_a_full_disk_is_met_before(run, tmp_path, monkeypatch):
    monkeypatch.setattr("zarrmask.images.numbered.free_space", lambda place: 1000)
    with pytest.raises(RoomError, match=r"1.0 kB are free"):
        export(run[0], tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_command(run, cluster, zarrmask, tmp_path):
    out, _ = run
    options = ["--format", "jpg", "--window", "0", "40000", "--z", "100:103"]
    code, printed, _ = zarrmask("export", out, "a", *options, "--scheduler", cluster)
    assert (code, printed.startswith("slices 100 to 102 are in ")) == (0, True)
    assert sorted(path.name for path in (tmp_path / "a").glob("*.jpg")) == [
        "00100.jpg",
        "00101.jpg",
        "00102.jpg",
    ]
    record = json.loads((tmp_path / "a" / "export.json").read_text())
    assert record["identity"]["window"] == [0, 40000]


axis = st.tuples(st.integers(1, 40), st.integers(1, 17))


@given(axes=st.tuples(axis, axis, axis), cut=st.tuples(st.integers(0, 39), st.integers(1, 40)))
def test_pieces_cover_a_slab_once_in_whole_blocks(axes, cut):
    shape = tuple(size for size, _ in axes)
    block = tuple(min(size, side) for size, side in axes)
    slab = slice(cut[0] % shape[0], min(shape[0], cut[0] % shape[0] + cut[1]))
    seen = np.zeros(shape, int)
    for region in pieces(slab, shape, block, 2):
        seen[region] += 1
        for part, side, whole in zip(region[1:], block[1:], shape[1:], strict=True):
            assert part.start % side == 0
            assert part.stop % side == 0 or part.stop == whole
    assert (seen[slab] == 1).all()
    assert seen.sum() == seen[slab].size


def test_a_slab_gives_back_its_slices(tmp_path):
    voxels = np.random.default_rng(1).integers(0, 9, (5, 7, 11)).astype(np.uint16)
    voxels[2] = 0
    slab = Slab(tmp_path / "raw", slice(3, 8), (7, 11), voxels.dtype)
    for x in (slice(0, 4), slice(4, 11)):
        slab.put((slice(3, 8), slice(0, 7), x), voxels[:, :, x])
    np.testing.assert_array_equal(np.array([slab.take(n) for n in range(3, 8)]), voxels)
