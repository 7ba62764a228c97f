"""Pyramids written brick by brick, against NumPy, khartes' rules and the OME-NGFF models."""

import errno
import json
import os
from dataclasses import replace
from itertools import pairwise, product
from math import ceil

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ome_zarr.format import FormatV04
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v04 import Image
from ome_zarr_models.v04.image_label import ImageLabel

from zarrmask import ZarrmaskError, open_pyramid
from zarrmask.chunks import MOST_CHUNKS
from zarrmask.info import describe
from zarrmask.pyramid import (
    BrickGrid,
    Format,
    Pyramid,
    brick_grid,
    link_label,
    tiles,
    write_metadata,
)
from zarrmask.pyramid.downsample import halve_max, halve_mean
from zarrmask.pyramid.layout import level_shapes

ODD = (129, 257, 301)
PLAIN = Format()


def write(path, data, reduce, grid=None, form=PLAIN, **metadata):
    """Write all passes of a pyramid, brick by brick, in this process."""
    scratch = path.parent / f"scratch-{path.name}"
    pyramid = Pyramid(path, scratch, data.shape, str(data.dtype), reduce, form)
    pyramid.create()
    for level in pyramid.passes:
        source = data if level == 0 else pyramid.handed_over(level)
        bricks = brick_grid(source.shape, 2, (1, 1, 1), step=form.step)
        if level == 0 and grid:
            bricks = grid
        for index in product(*(range(count) for count in bricks.counts)):
            for region in tiles(bricks.region(index), form.step[:2]):
                with pyramid.step(level, region) as step:
                    blocks = [
                        (tile, np.asarray(source[tile]))
                        for tile in tiles(region, (form.file, form.file))
                    ]
                    for tile, block in blocks:
                        step.write(tile, block)
                    step.finish()
    stated = {"voxel_size": None, "origin": (0, 0, 0), "ngff": form.ngff, "reduce": pyramid.reduce}
    write_metadata(path, path.stem, len(pyramid.levels), **stated | metadata)
    return pyramid


def noise(shape, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A volume of odd sizes, its mask and the masked volume."""
    folder = tmp_path_factory.mktemp("pyramids")
    volume = noise(ODD)
    mask = np.zeros(ODD, np.uint8)
    mask[20:100, 30:257, 200:301] = 255
    for name, data, reduce in (
        ("volume", volume, "mean"),
        ("mask", mask, "max"),
        ("masked", volume * (mask > 0), "mean"),
    ):
        write(folder / f"{name}.zarr", data, reduce, voxel_size=7.91, origin=(10, 0, 0))
    link_label(folder / "masked.zarr", folder / "mask.zarr")
    return folder, None


def test_metadata_say_how_levels_were_made(written):
    for name, reduce in (("volume", "mean"), ("mask", "max"), ("masked", "mean")):
        attributes = dict(zarr.open_group(written[0] / f"{name}.zarr", mode="r").attrs)
        (multiscale,) = attributes.get("ome", attributes)["multiscales"]
        assert multiscale["type"] == reduce


@pytest.mark.parametrize(("name", "halve"), [("volume", halve_mean), ("mask", halve_max)])
def test_every_level_is_the_halved_one_before(written, name, halve):
    levels = open_pyramid(written[0] / f"{name}.zarr")
    before = levels["0/image"].values
    for n in range(1, len(levels.children)):
        level = levels[f"{n}/image"].values
        np.testing.assert_array_equal(level, halve(before))
        before = level


def files_of(folder):
    """Every file under a folder and its bytes."""
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def reference(data, reduce):
    """The next level by plain NumPy: of each 2 x 2 x 2 voxels those that exist."""
    padded = np.pad(data.astype(np.int64), [(0, size % 2) for size in data.shape])
    there = np.pad(np.ones(data.shape, int), [(0, size % 2) for size in data.shape])
    shape = [n for size in padded.shape for n in (size // 2, 2)]
    cubes, counts = padded.reshape(shape), there.reshape(shape).sum((1, 3, 5))
    if reduce == "max":
        return cubes.max((1, 3, 5)).astype(data.dtype)
    return ((cubes.sum((1, 3, 5)) + counts // 2) // counts).astype(data.dtype)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 600)),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    reduce=st.sampled_from(["mean", "max"]),
    steps=st.tuples(*[st.integers(1, 4)] * 3),
    form=st.builds(
        Format,
        ngff=st.sampled_from(["0.4", "0.5"]),
        chunk=st.sampled_from([32, 64, 128]),
        levels=st.integers(1, 6),
        compressor=st.sampled_from(["none", "blosc-lz4", "blosc-zstd"]),
        compression=st.integers(1, 9),
    ),
    seed=st.integers(0, 100),
)
def test_bricks_change_no_voxel_and_no_byte(
    tmp_path_factory, shape, dtype, reduce, steps, form, seed
):
    data = noise(shape, dtype, seed)
    brick = tuple(
        min(n * edge, size) for n, edge, size in zip(steps, form.step, shape, strict=True)
    )
    folder = tmp_path_factory.mktemp("bricks")
    path, whole = (folder / name / "image.zarr" for name in ("bricks", "whole"))
    pyramid = write(path, data, reduce, BrickGrid(shape, brick, form.step), form)
    write(whole, data, reduce, BrickGrid(shape, shape, form.step), form)
    assert files_of(path) == files_of(whole)
    assert pyramid.levels == level_shapes(shape, form.levels)
    for n in range(len(pyramid.levels)):
        np.testing.assert_array_equal(pyramid.array(n)[:], data)
        stock = zarr.open_array(path / str(n), mode="r")
        np.testing.assert_array_equal(stock[:], data)
        data = reference(data, reduce)


# What khartes accepts, rule by rule, on odd shapes and on real slices.

ALL_THREE = pytest.mark.parametrize("name", ["volume", "mask", "masked"])


@pytest.fixture(params=["odd", pytest.param("real", marks=pytest.mark.real)])
def outputs(request):
    """Folder of the three pyramids."""
    return request.getfixturevalue("written" if request.param == "odd" else "real_run")[0]


def document(path):
    return json.loads(path.read_text())


def levels_of(root):
    return sorted(root.glob("[0-9]"))


@ALL_THREE
def test_khartes_format_2_only(outputs, name):
    root = outputs / f"{name}.zarr"
    assert not any((folder / "zarr.json").exists() for folder in (root, *levels_of(root)))
    assert document(root / ".zgroup") == {"zarr_format": 2}
    for level in levels_of(root):
        array = document(level / ".zarray")
        assert array["zarr_format"] == 2
        assert array["dimension_separator"] == "/"
        assert array["compressor"]["id"] == "blosc"
        assert array["chunks"] == [128, 128, 128]
        assert array["fill_value"] == 0


@ALL_THREE
def test_khartes_paths_count_up_from_0(outputs, name):
    root = outputs / f"{name}.zarr"
    (multiscale,) = document(root / ".zattrs")["multiscales"]
    paths = [dataset["path"] for dataset in multiscale["datasets"]]
    assert paths == [str(n) for n in range(len(paths))]
    assert paths == [level.name for level in levels_of(root)]


@ALL_THREE
def test_khartes_scale_is_two_to_the_level(outputs, name):
    (multiscale,) = document(outputs / f"{name}.zarr" / ".zattrs")["multiscales"]
    for level, dataset in enumerate(multiscale["datasets"]):
        first = next(t for t in dataset["coordinateTransformations"] if "scale" in t)
        assert first["scale"] == [2.0**level] * 3


@ALL_THREE
def test_khartes_axes_and_voxel_size(outputs, name):
    (multiscale,) = document(outputs / f"{name}.zarr" / ".zattrs")["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"micrometer"}
    assert multiscale["coordinateTransformations"][0] == {"type": "scale", "scale": [7.91] * 3}


@ALL_THREE
def test_khartes_level_shapes_are_rounded_up(outputs, name):
    shapes = [document(level / ".zarray")["shape"] for level in levels_of(outputs / f"{name}.zarr")]
    for fine, coarse in pairwise(shapes):
        assert coarse == [-(-size // 2) for size in fine]
    assert max(shapes[-1]) < 128 or len(shapes) == 6


def test_khartes_a_mask_is_0_or_255(outputs):
    for level in levels_of(outputs / "mask.zarr"):
        mask = zarr.open_array(level, mode="r")
        assert mask.dtype == np.uint8
        assert set(np.unique(mask[:])) == {0, 255}


def test_khartes_each_is_a_volume_by_itself(outputs):
    for name in ("volume", "mask", "masked"):
        root = outputs / f"{name}.zarr"
        assert not any(path.is_symlink() for path in (root, *levels_of(root)))


def test_khartes_no_file_for_an_empty_chunk(outputs):
    for level in levels_of(outputs / "mask.zarr"):
        mask = zarr.open_array(level, mode="r")
        counts = [range(-(-size // 128)) for size in mask.shape]
        for index in product(*counts):
            filled = mask[tuple(slice(128 * n, 128 * n + 128) for n in index)].any()
            assert level.joinpath(*map(str, index)).exists() == filled


def test_khartes_reads_voxels_with_the_stock_pipeline(written):
    written, _ = written
    with zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}):
        np.testing.assert_array_equal(zarr.open_array(written / "volume.zarr/0")[:], noise(ODD))


# What the specification and its readers say.


@ALL_THREE
def test_ngff_models_accept_it(written, name):
    Image.from_zarr(zarr.open_group(written[0] / f"{name}.zarr", mode="r"))


def test_ngff_models_accept_the_label(written):
    ImageLabel.from_zarr(zarr.open_group(written[0] / "masked.zarr/labels/mask", mode="r"))


@ALL_THREE
def test_ome_zarr_reads_it(written, name):
    node = next(iter(Reader(parse_url(str(written[0] / f"{name}.zarr"), fmt=FormatV04()))()))
    assert [data.shape for data in node.data] == list(level_shapes(ODD))
    assert isinstance(node.data[0], da.Array)


def test_ome_zarr_finds_the_label(written):
    image, *others = Reader(parse_url(str(written[0] / "masked.zarr"), fmt=FormatV04()))()
    label = next(node for node in others if node.metadata.get("name") == "mask")
    assert [data.shape for data in label.data] == [data.shape for data in image.data]
    assert 255 in label.metadata["color"]


def test_the_label_is_a_link_that_moves_along(written):
    for level in ("0", "1", "2"):
        link = written[0] / "masked.zarr/labels/mask" / level
        assert not link.readlink().is_absolute()
        assert link.resolve() == written[0] / "mask.zarr" / level


def test_linking_twice_is_as_linking_once(written):
    link_label(written[0] / "masked.zarr", written[0] / "mask.zarr")
    assert document(written[0] / "masked.zarr/labels/.zattrs")["labels"] == ["mask"]


def test_a_tree_of_levels_with_coordinates_in_micrometres(written):
    tree = open_pyramid(written[0] / "volume.zarr")
    assert isinstance(tree, xr.DataTree)
    fine, coarse = tree["0/image"], tree["1/image"]
    assert fine.dims == ("z", "y", "x")
    assert isinstance(fine.data, da.Array)
    assert fine.z.attrs["units"] == "micrometer"
    np.testing.assert_allclose(fine.z[:2], [79.1, 87.01])  # the tenth slice of the stack
    np.testing.assert_allclose(coarse.x[0], 7.91 / 2)  # midway between the two it stands for


def test_without_voxel_size_coordinates_are_voxels(tmp_path):
    write(tmp_path / "plain.zarr", noise((3, 4, 5)), "mean")
    image = open_pyramid(tmp_path / "plain.zarr")["0/image"]
    np.testing.assert_array_equal(image.x, np.arange(5))
    assert "units" not in image.x.attrs


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_scroll_is_no_million_tasks(tmp_path, ngff):
    form = Format(ngff=ngff)
    scroll = Pyramid(
        tmp_path / "a.zarr", tmp_path / "s", (27_000, 8_096, 8_096), "u2", "mean", form
    )
    scroll.create()
    stated = {"voxel_size": 7.91, "origin": (0, 0, 0), "ngff": ngff}
    write_metadata(scroll.path, "a", len(scroll.levels), **stated)
    levels = open_pyramid(scroll.path)
    for number in range(len(levels.children)):
        image = levels[f"{number}/image"].data
        assert image.npartitions <= MOST_CHUNKS
        assert all(side % 128 == 0 for sides in image.chunks for side in sides[:-1])


def test_what_was_written_anew_is_read_anew(tmp_path):
    """Dask keeps by its name what it has computed."""
    write(tmp_path / "a.zarr", noise((3, 4, 5)), "mean")
    one, same = (open_pyramid(tmp_path / "a.zarr")["0/image"].data.name for _ in range(2))
    assert one == same
    os.utime(tmp_path / "a.zarr/.zattrs", ns=(0, 0))
    assert open_pyramid(tmp_path / "a.zarr")["0/image"].data.name != one


def test_levels_in_groups_of_their_own_are_numbered_finest_first(tmp_path):
    path = tmp_path / "nested.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    names = ("full/resolution", "a/half")
    datasets = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * 3}]}
        for n, name in enumerate(names)
    ]
    for n, name in enumerate(names):
        group.create_array(name, shape=(8 // 2**n,) * 3, dtype="u1")
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    image = {"version": "0.4", "axes": axes, "datasets": datasets}
    group.attrs["multiscales"] = [image]
    levels = open_pyramid(path)
    assert [level["image"].shape for level in levels.children.values()] == [(8,) * 3, (4,) * 3]
    assert describe(path)["level 1"] == "4 x 4 x 4 uint8"


def test_what_is_no_pyramid_is_said_to_be_none(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ZarrmaskError, match="not an OME-Zarr image"):
            open_pyramid(path)


def test_torn_chunks_are_written_again(tmp_path):
    data = noise((20, 130, 140))
    pyramid = write(tmp_path / "torn.zarr", data, "mean")
    for chunk in (*tmp_path.glob("torn.zarr/0/*/*/*"), *tmp_path.glob("scratch-*/2/*/*/*")):
        chunk.write_bytes(chunk.read_bytes()[:100])
    everything = (slice(0, 20), slice(0, 130), slice(0, 140))
    with pyramid.step(0, everything) as step:
        for tile in tiles(everything, (128, 128)):
            step.write(tile, data[tile])
        step.finish()
    np.testing.assert_array_equal(pyramid.array(0)[:], data)
    assert zarr.config.get("codec_pipeline.path") != "zarrs.ZarrsCodecPipeline"
    assert type(pyramid.array(0).async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"


def test_a_stop_while_arrays_are_made_leaves_no_trace(tmp_path):
    made = []
    for name in ("whole", "again"):
        pyramid = Pyramid(tmp_path / name, tmp_path / f"s-{name}", (130, 3, 3), "uint8", "mean")
        assert pyramid.create()
        if name == "again":
            (tmp_path / "again/0/.zattrs").unlink()
            (tmp_path / "again/1/.zarray").unlink()
            assert pyramid.create()
        assert not pyramid.create()
        root = tmp_path / name
        made.append({p.relative_to(root): p.read_bytes() for p in root.rglob(".z*")})
    assert made[0] == made[1]


def test_attributes_that_are_there_stay(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr/.zattrs").write_text('{"mine": 1}')
    Pyramid(tmp_path / "a.zarr", tmp_path / "scratch", (3, 3, 3), "uint8", "mean").create()
    assert document(tmp_path / "a.zarr/.zattrs") == {"mine": 1}


def test_an_unfinished_pyramid_is_not_opened(tmp_path):
    Pyramid(tmp_path / "a.zarr", tmp_path / "scratch", (3, 3, 3), "uint8", "mean").create()
    with pytest.raises(ZarrmaskError, match="not an OME-Zarr image"):
        open_pyramid(tmp_path / "a.zarr")


@pytest.mark.parametrize("links", ["yes", "no", "unknown to the disk"])
@pytest.mark.parametrize("form", [Format(chunk=16), Format(chunk=16, ngff="0.5")], ids=str)
def test_what_another_pyramid_holds_too_is_shared(tmp_path, monkeypatch, links, form):
    data = noise((64, 64, 140))
    data[:, :, :32] = 0
    one = Pyramid(tmp_path / "one.zarr", tmp_path / "s1", data.shape, "uint16", "mean", form)
    two = replace(one, path=tmp_path / "two.zarr", scratch=tmp_path / "s2", links=links != "no")
    everything = tuple(slice(0, side) for side in data.shape)
    for pyramid in (one, two):
        pyramid.create()
    if links == "unknown to the disk":

        def refuse(*_):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):  # the second time over what is there, as after a stop
        for region in tiles(everything, form.step[:2]):
            with one.step(0, region) as first, two.step(0, region) as second:
                for tile in tiles(region, (form.file, form.file)):
                    first.write(tile, data[tile])
                    second.repeat(tile, data[tile], first)
                    for step in (first, second):
                        step.settle()
                for step in (first, second):
                    step.finish()
    for level in range(2):
        expected = one.array(level)[:]
        assert expected.any()
        np.testing.assert_array_equal(two.array(level)[:], expected)
    np.testing.assert_array_equal(two.array(0)[:], data)
    for level in range(2):
        files = [path for path in two.path.glob(f"{level}/**/[0-9]*") if path.is_file()]
        assert files
        shared = {path.samefile(one.path / path.relative_to(two.path)) for path in files}
        assert shared == {links == "yes"}
    # Written anew, a file is no longer the other's.
    with two.step(0, everything) as step:
        step.write(everything, np.full(data.shape, 7, np.uint16))
    np.testing.assert_array_equal(one.array(0)[:], data)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(256, 300)),
    cut=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 18)), max_size=9),
)
def test_a_coarser_file_is_shared_where_all_that_made_it_is(tmp_path_factory, shape, cut):
    folder = tmp_path_factory.mktemp("coarser")
    form = Format(chunk=16)
    one = Pyramid(folder / "one.zarr", folder / "s1", shape, "uint16", "mean", form)
    two = replace(one, path=folder / "two.zarr", scratch=folder / "s2", links=True)
    for pyramid in (one, two):
        pyramid.create()
    data = noise(shape)
    changed, cut_files = data.copy(), set()
    for region in tiles(tuple(slice(0, size) for size in shape), form.step[:2]):
        with one.step(0, region) as first, two.step(0, region) as second:
            for z, y, x in tiles(region, (16, 16)):
                first.write((z, y, x), data[z, y, x])
                for left in range(0, x.stop, 16):
                    file = z, y, slice(left, min(left + 16, x.stop))
                    if (place := tuple(part.start // 16 for part in file)) in cut:
                        cut_files.add(place)
                        changed[file] //= 2
                        second.write(file, changed[file])
                    else:
                        second.repeat(file, data[file], first)
            for step in (first, second):
                step.finish()
    np.testing.assert_array_equal(two.array(0)[:], changed)
    np.testing.assert_array_equal(two.array(1)[:], reference(changed, "mean"))
    for place in product(*(range(ceil(size / 32)) for size in shape)):
        made_of = set(product(*((2 * n, 2 * n + 1) for n in place)))
        mine, others = (one.joinpath("1", *map(str, place)) for one in (two.path, one.path))
        assert mine.samefile(others) == (not made_of & cut_files)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(140, 300)),
    empty=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=6),
)
def test_nothing_of_another_step_is_left_in_a_coarser_level(tmp_path_factory, shape, empty):
    folder, form = tmp_path_factory.mktemp("left"), Format(chunk=16)
    one = Pyramid(folder / "one.zarr", folder / "s1", shape, "uint16", "mean", form)
    two = replace(one, path=folder / "two.zarr", scratch=folder / "s2", links=True)
    for pyramid in (one, two):
        pyramid.create()
    data, half = noise(shape), slice(0, shape[2] // 32 * 16)  # whole files
    masked = np.zeros_like(data)
    # The last step first: those at the border are smaller, and find what larger ones left.
    for region in reversed(list(tiles(tuple(slice(0, size) for size in shape), form.step[:2]))):
        with one.step(0, region) as first, two.step(0, region) as second:
            for z, y, x in tiles(region, (16, 16)):
                if (z.start // 16, y.start // 16) in empty:
                    data[z, y, x] = 0
                first.write((z, y, x), data[z, y, x])
                second.repeat((z, y, half), data[z, y, half], first)
                masked[z, y, half] = data[z, y, half]
            for step in (first, second):
                step.finish()
    for pyramid, expected in ((one, data), (two, masked)):
        np.testing.assert_array_equal(pyramid.array(0)[:], expected)
        np.testing.assert_array_equal(pyramid.array(1)[:], reference(expected, "mean"))


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("form", [Format(chunk=16), Format(chunk=16, ngff="0.5")], ids=str)
def test_a_tile_of_one_value_is_written_as_any_other(tmp_path, links, form):
    shape = (40, 70, 150)  # whole files, and others at the border
    data = np.full(shape, 255, np.uint8)
    scratch = tmp_path / "scratch"
    filled = Pyramid(tmp_path / "a.zarr", scratch / "a", shape, "uint8", "max", form, links)
    written = Pyramid(tmp_path / "b.zarr", scratch / "b", shape, "uint8", "max", form)
    everything = tuple(slice(0, side) for side in shape)
    for pyramid in (filled, written):
        pyramid.create()
    for _ in range(2):  # the second time over what is there, as after a stop
        for region in tiles(everything, form.step[:2]):
            with filled.step(0, region) as one, written.step(0, region) as other:
                for tile in tiles(region, (form.file, form.file)):
                    one.fill(tile, 255)
                    other.write(tile, data[tile])
                one.finish()
                other.finish()
    files = [path for path in written.path.glob("[01]/**/[0-9]*") if path.is_file()]
    assert len(files) > 4
    for file in files:
        assert (filled.path / file.relative_to(written.path)).read_bytes() == file.read_bytes()
    mine = [filled.path / file.relative_to(written.path) for file in files]
    assert any(file.stat().st_nlink > 1 for file in mine) == links
