"""Outputs in a bucket of a real S3 server: as in a folder, byte by byte."""

import numpy as np
import pytest
import tifffile

import zarrmask


@pytest.fixture(scope="module")
def small_stack(tmp_path_factory):
    """Twelve slices of noise in three bricks and three levels."""
    folder = tmp_path_factory.mktemp("small")
    rng = np.random.default_rng(0)
    for n in range(12):
        tifffile.imwrite(folder / f"{n}.tif", rng.integers(0, 65535, (300, 200), np.uint16))
    return folder


def in_folder(folder):
    """Every file under a folder, its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def in_bucket(s3, name):
    """Every object under a name, its bytes."""
    root = f"{s3.bucket}/{name}"
    files = s3.files
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def test_a_conversion(s3, small_stack, cluster, tmp_path):
    here = zarrmask.convert(small_stack, tmp_path / "v.zarr", voxel_size=2.4, scheduler=cluster)
    there = zarrmask.convert(
        small_stack, s3.place("convert/v.zarr"), voxel_size=2.4, scheduler=cluster
    )
    assert in_bucket(s3, "convert/v.zarr") == in_folder(here)
    tree = zarrmask.open_pyramid(there)
    np.testing.assert_array_equal(tree["0/image"][3], tifffile.imread(small_stack / "3.tif"))
