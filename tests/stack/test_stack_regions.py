"""Every kind of input gives, for every region, what NumPy gives for the volume in memory."""

import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from zarrmask.stack import Source, open_source, open_stack

SHAPE = (5, 37, 53)

TIFF_OPTIONS: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "strips": {"rowsperstrip": 7},
    "big-endian": {"byteorder": ">", "rowsperstrip": 7},
    "bigtiff": {"bigtiff": True, "metadata": None},
    "lzw": {"compression": "lzw"},
    "lzw-predictor-strips": {
        "compression": "lzw",
        "predictor": True,
        "rowsperstrip": 9,
        "byteorder": ">",
    },
    "deflate-predictor": {"compression": "deflate", "predictor": True},
    "zstd": {"compression": "zstd", "rowsperstrip": 1},
    "tiles": {"tile": (16, 32)},
    "tiles-deflate": {"tile": (16, 16), "compression": "deflate", "byteorder": ">"},
}
MULTIPAGE_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"metadata": None},
    "described": {},
    "one-page-for-all": {"truncate": True},
    "imagej": {"imagej": True},
    "imagej-z": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "big-endian": {"byteorder": ">"},
    "lzw-strips": {"compression": "lzw", "rowsperstrip": 8},
    "tiles": {"tile": (16, 16), "compression": "zstd", "byteorder": ">"},
}


def write_folder(path: Path, data: np.ndarray, **options: Any) -> None:
    path.mkdir()
    for z, image in enumerate(data, start=8):
        tifffile.imwrite(path / f"{z}.tif", image, **options)


def write_pages_one_by_one(path: Path, data: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as tif:
        for image in data:
            tif.write(image)


def write_pages_with_thumbnails(path: Path, data: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as tif:
        for image in data:
            tif.write(image, metadata=None)
            tif.write(image[::4, ::4], subfiletype=1, metadata=None)


def write_png(path: Path, data: np.ndarray) -> None:
    path.mkdir()
    for z, image in enumerate(data):
        cv2.imwrite(str(path / f"{z:03d}.PNG"), image)


def write_jpeg(path: Path, data: np.ndarray) -> None:
    path.mkdir()
    for z, image in enumerate(data):
        cv2.imwrite(str(path / f"{z:03d}.jpg"), image)


def write_zarr(path: Path, data: np.ndarray, dtype: str = "<u2", **options: Any) -> None:
    array = zarr.create_array(path, shape=data.shape, dtype=dtype, **options)
    array[:] = data


def write_ome(path: Path, data: np.ndarray, zarr_format: int) -> None:
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    array = group.create_array("0", shape=(1, *data.shape), chunks=(1, 2, 16, 16), dtype="u2")
    array[0] = data
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "zyx")]
    scale = [{"type": "scale", "scale": [1, 3.24, 3.24, 3.24]}]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    attributes = {"multiscales": [image]}
    group.attrs.update({"ome": attributes} if zarr_format == 3 else attributes)


Writer = Callable[[Path, np.ndarray], None]


def writers() -> Iterator[Any]:
    def case(name: str, suffix: str, write: Callable[..., None], **options: Any) -> Any:
        def run(path: Path, data: np.ndarray) -> None:
            write(path, data, **options)

        return pytest.param((suffix, run, name), id=name)

    for name, options in TIFF_OPTIONS.items():
        yield case(f"folder-{name}", "", write_folder, **options)
    for name, options in MULTIPAGE_OPTIONS.items():
        yield case(f"multipage-{name}", ".tif", tifffile.imwrite, **options)
    yield case("multipage-one-by-one", ".tif", write_pages_one_by_one)
    yield case("multipage-thumbnails", ".TIFF", write_pages_with_thumbnails)
    yield case("png", "", write_png)
    yield case("jpeg", "", write_jpeg)
    yield case("zarr2", ".zarr", write_zarr, chunks=(2, 16, 16), zarr_format=2)
    yield case("zarr2-big-endian", "", write_zarr, dtype=">u2", chunks=(2, 9, 9), zarr_format=2)
    yield case("zarr2-fortran", "", write_zarr, chunks=(2, 9, 9), zarr_format=2, order="F")
    yield case("zarr3", "", write_zarr, chunks=(2, 16, 16), zarr_format=3)
    yield case("zarr3-shards", "", write_zarr, chunks=(1, 8, 8), shards=(2, 16, 16))
    yield case("ome4", ".zarr", write_ome, zarr_format=2)
    yield case("ome5", ".zarr", write_ome, zarr_format=3)


@pytest.fixture(scope="module", params=writers())
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, volume: np.ndarray
) -> tuple[Source, np.ndarray]:
    suffix, write, name = request.param
    path = tmp_path_factory.mktemp("input") / f"stack{suffix}"
    if name == "jpeg":
        data = np.repeat((volume >> 8).astype(np.uint8)[:, ::8, ::8], 8, axis=1)[:, :37]
        write(path, data)
        # JPEG is lossy: the truth is what another decoder reads.
        data = np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted(path.iterdir())])
    else:
        data = volume
        write(path, data)
    return open_source(path), data


def test_header_facts(case: tuple[Source, np.ndarray]) -> None:
    source, data = case
    assert source.shape == data.shape
    assert source.dtype == data.dtype
    assert source.dtype.isnative
    assert source.ndim == 3
    assert source.missing == ()
    assert source.numbers.dtype == np.int64
    assert len(source.numbers) == len(data)
    assert all(1 <= side <= size for side, size in zip(source.block, source.shape, strict=True))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_regions(case: tuple[Source, np.ndarray], data: st.DataObject) -> None:
    source, truth = case
    index = data.draw(basic_indices(truth.shape, max_dims=3))
    region = source[index]
    assert region.dtype == truth.dtype
    assert isinstance(region, np.ndarray)
    np.testing.assert_array_equal(region, truth[index])


def test_pickled_and_read_by_many_threads(case: tuple[Source, np.ndarray]) -> None:
    source, truth = case
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda y: again[:, y : y + 5], range(truth.shape[1])))
    for y, region in enumerate(rows):
        np.testing.assert_array_equal(region, truth[:, y : y + 5])
    assert again.fingerprint() == source.fingerprint()


def test_xarray(case: tuple[Source, np.ndarray]) -> None:
    source, truth = case
    stack = open_stack(source.path, chunks=(2, 10, -1))
    assert stack.dims == ("z", "y", "x")
    np.testing.assert_array_equal(stack.z, source.numbers)
    assert stack.attrs["source"] == source.path
    assert stack.attrs["missing"] == []
    np.testing.assert_array_equal(stack.values, truth)
    np.testing.assert_array_equal(stack[::-2, 3:20:4, 5].values, truth[::-2, 3:20:4, 5])
    first = int(source.numbers[0])
    np.testing.assert_array_equal(stack.sel(z=first + 3).values, truth[3])
    assert stack.astype(np.float64).mean().compute() == pytest.approx(truth.mean())


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(write_folder, id="folder"),
        pytest.param(partial(write_folder, byteorder=">"), id="folder-big-endian"),
        pytest.param(
            partial(
                write_folder, compression="deflate", predictor=3, rowsperstrip=9, byteorder=">"
            ),
            id="folder-compressed",
        ),
        pytest.param(partial(write_zarr, dtype="<f4", zarr_format=2), id="zarr"),
        pytest.param(partial(write_zarr, dtype=">f4", zarr_format=2), id="zarr-big-endian"),
    ],
)
def test_floats_are_read_as_they_are(write: Writer, tmp_path: Path, volume: np.ndarray) -> None:
    data = np.float32(volume) / np.float32(7) - 3000
    data[1, 2, 3:6] = np.nan, np.inf, -np.inf
    write(tmp_path / "stack", data)
    source = open_source(tmp_path / "stack")
    assert source.dtype == np.float32
    assert source.dtype.isnative
    np.testing.assert_array_equal(source[1:3, 1:20, ::2], data[1:3, 1:20, ::2])


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("options", [{}, {"compression": "deflate", "predictor": 2}])
def test_signed_greys_are_read_as_they_are(options, byteorder, tmp_path: Path, volume) -> None:
    data = (volume.astype(np.int32) - 2**15).astype(np.int16)
    assert data.min() < 0 < data.max()
    write_folder(tmp_path / "stack", data, byteorder=byteorder, **options)
    source = open_source(tmp_path / "stack")
    assert source.dtype == np.int16
    assert source.dtype.isnative
    np.testing.assert_array_equal(source[1:3, 1:20, ::2], data[1:3, 1:20, ::2])


@pytest.mark.parametrize(
    ("columns", "start", "stop"),
    [(8096, 0, 8096), (8096, 3072, 6144), (8096, 3000, 3100), (9000, 0, 8192), (9000, 8192, 9000)],
)
def test_no_more_is_read_of_uncompressed_rows_than_is_wanted(
    tmp_path, monkeypatch, columns, start, stop
):
    """Workers on other machines do not share what is read: bricks side by side would add up."""
    image = np.random.default_rng(0).integers(0, 2**16, (64, columns), np.uint16)
    path = tmp_path / "0.tif"
    tifffile.imwrite(path, image)
    source, read, really = open_source(tmp_path), [], os.preadv

    def counting(file, parts, place):
        read.append(sum(part.nbytes for part in parts))
        return really(file, parts, place)

    out = np.empty((1, 64, stop - start), np.uint16)
    monkeypatch.setattr(os, "preadv", counting)
    source.read_into(out, slice(0, 1), slice(0, 64), slice(start, stop))
    np.testing.assert_array_equal(out[0], image[:, start:stop])
    assert sum(read) <= 17 / 16 * out.nbytes
