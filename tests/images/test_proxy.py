"""Small JPEGs of a stack."""

import shutil

import cv2
import numpy as np
import pytest
import tifffile
import zarr

from zarrmask.detection.inputs import to_8bit
from zarrmask.errors import OutputError, SettingsError, StackError
from zarrmask.images.proxy import proxy
from zarrmask.progress import Reporter


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_proxies_are_the_slices_made_small(stack, cluster, tmp_path):
    record = proxy(stack, tmp_path / "a", side=85, every=5, quality=100, scheduler=cluster)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {"proxy.json", *(f"{n:05d}.jpg" for n in range(100, 123, 5))}
    assert record["stack"]["voxel_bytes"] == 5 * 150 * 170 * 2
    assert record["bytes"] == sum(path.stat().st_size for path in (tmp_path / "a").glob("*.jpg"))
    small = read(tmp_path / "a" / "00105.jpg").astype(int)
    assert small.shape == (75, 85)
    grey = to_8bit(tifffile.imread(stack / "00105.tif"))
    mean = cv2.resize(grey, (85, 75), interpolation=cv2.INTER_AREA)
    assert np.abs(small - mean).mean() < 3
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("*.jpg")}
    (tmp_path / "a" / "00110.jpg").unlink()
    proxy(stack, tmp_path / "a", side=85, every=5, quality=100, scheduler=cluster)
    changed = {path.name for path in kept if path.stat().st_mtime_ns != kept[path]}
    assert changed == {"00110.jpg"}
    with pytest.raises(OutputError, match="every: 5 then, 4 now"):
        proxy(stack, tmp_path / "a", side=85, every=4, quality=100, scheduler=cluster)


def test_a_stack_that_changes_while_proxies_are_made(stack, cluster, tmp_path):
    copy = shutil.copytree(stack, tmp_path / "stack")

    class Changing(Reporter):
        def stage(self, *arguments, **options):
            tifffile.imwrite(copy / "00105.tif", tifffile.imread(copy / "00106.tif"))
            return super().stage(*arguments, **options)

    with pytest.raises(StackError, match="was changed while it was read"):
        proxy(copy, tmp_path / "a", side=85, every=5, scheduler=cluster, reporter=Changing())
    with pytest.raises(OutputError, match="have changed since"):
        proxy(copy, tmp_path / "a", side=85, every=5, scheduler=cluster)
    proxy(copy, tmp_path / "a", side=85, every=5, scheduler=cluster, overwrite=True)


def test_masks_that_were_painted_beside_proxies_stay(stack, cluster, tmp_path):
    options = {"every": 11, "scheduler": cluster}
    proxy(stack, tmp_path / "a", side=85, **options)
    for name in ("00100.png", "00111.tif"):
        (tmp_path / "a" / name).write_bytes(b"painted")
    (tmp_path / "a" / "00101.jpg").write_bytes(b"of another interval")
    proxy(stack, tmp_path / "a", side=60, overwrite=True, **options)
    names = {path.name for path in (tmp_path / "a").iterdir()}
    proxies = {"00100.jpg", "00111.jpg", "00122.jpg"}
    assert names == {"proxy.json", "00100.png", "00111.tif", *proxies}


def test_proxies_do_not_replace_what_they_are_made_of(stack, cluster, tmp_path):
    proxy(stack, tmp_path / "a", side=85, scheduler=cluster)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    before = sorted(path.name for path in (tmp_path / "a").iterdir())
    for read, written in (("a", "a"), ("link", "a"), ("a", "link")):
        with pytest.raises(OutputError, match="would overwrite what is read"):
            proxy(tmp_path / read, tmp_path / written, side=40, overwrite=True, scheduler=cluster)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == before
    zarr.save_array(tmp_path / "z.zarr", np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(OutputError, match=r"z\.zarr; name another folder"):
        proxy(tmp_path / "z.zarr", tmp_path / "z.zarr" / "small", scheduler=cluster)


def test_no_jpeg_is_as_wide_as_that(tmp_path):
    zarr.save_array(tmp_path / "z.zarr", np.zeros((1, 1, 70_000), np.uint8))
    with pytest.raises(SettingsError, match="1 x 70000 pixels are no JPEGs"):
        proxy(tmp_path / "z.zarr", tmp_path / "small", side=70_000)
    assert not (tmp_path / "small").exists()


def test_missing_slices_have_no_proxy(stack, cluster, tmp_path):
    for number in (100, 101, 104):
        (tmp_path / "gaps").mkdir(exist_ok=True)
        (tmp_path / "gaps" / f"{number}.tif").symlink_to(stack / f"{number:05d}.tif")
    options = {"allow_missing": True, "detect_window": "0 30000", "scheduler": cluster}
    proxy(tmp_path / "gaps", tmp_path / "a", quality=100, **options)
    there = sorted(path.name for path in (tmp_path / "a").glob("*.jpg"))
    assert there == ["00100.jpg", "00101.jpg", "00104.jpg"]
    seen = to_8bit(tifffile.imread(stack / "00104.tif"), (0, 30_000)).astype(int)
    assert np.abs(read(tmp_path / "a" / "00104.jpg") - seen).max() <= 3


def test_floats_want_a_window(tmp_path):
    zarr.save(tmp_path / "floats.zarr", np.zeros((2, 9, 9), np.float32))
    with pytest.raises(SettingsError, match="--detect-window LO HI"):
        proxy(tmp_path / "floats.zarr", tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_command(stack, cluster, zarrmask, tmp_path):
    code, printed, _ = zarrmask(
        "proxy", stack, "a", "--side", 64, "--every", 11, "--scheduler", cluster
    )
    assert code == 0
    assert printed.startswith("3 slices in a: ")
    assert "times smaller" in printed
    assert read(tmp_path / "a" / "00111.jpg").shape == (56, 64)
