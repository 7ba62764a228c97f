"""What outputs can be stored as, by way of real conversions and runs."""

import json
import shutil
import warnings

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05 import Image
from zarr.errors import ZarrUserWarning

import zarrmask
from zarrmask.errors import SettingsError, StackError, ZarrmaskError
from zarrmask.info import describe
from zarrmask.progress import Reporter
from zarrmask.running.opening import open_input
from zarrmask.settings import Settings


@pytest.fixture(scope="module")
def voxels():
    return np.random.default_rng(0).integers(0, 5000, (70, 150, 260), np.uint16)


@pytest.fixture(scope="module")
def slices(voxels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats") / "stack"
    folder.mkdir()
    for z, image in enumerate(voxels):
        tifffile.imwrite(folder / f"{1000 + z}.tif", image)
    return folder


def test_ngff_05_is_sharded_zarr_3(slices, voxels, cluster, tmp_path):
    out = tmp_path / "new.zarr"
    options = {"ngff": "0.5", "chunk": 32, "compressor": "blosc-zstd:3", "voxel_size": 7.91}
    zarrmask.convert(slices, out, scheduler=cluster, z="1010:1070", **options)
    Image.from_zarr(zarr.open_group(out, mode="r"))
    array = zarr.open_array(out / "0", mode="r")
    assert array.metadata.zarr_format == 3
    assert (array.shards, array.chunks) == ((64,) * 3, (32,) * 3)
    np.testing.assert_array_equal(array[:], voxels[10:])
    tree = zarrmask.open_pyramid(out)
    assert float(tree["0/image"].z[0]) == pytest.approx(1010 * 7.91)
    files = [path for path in out.glob("0/c/**/*") if path.is_file()]
    assert len(files) == 1 * 3 * 5
    record = json.loads((out / "zarr.json").read_text())["attributes"]["zarrmask"]
    assert record["state"] == "finished"
    before = (out / "zarr.json").stat().st_mtime_ns
    zarrmask.convert(slices, out, scheduler=cluster, z="1010:1070", **options)
    assert (out / "zarr.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("now", ["0.4", "0.5"])
@pytest.mark.parametrize("then", ["0.4", "0.5"])
def test_nothing_of_before_outlives_an_overwrite(slices, voxels, cluster, tmp_path, then, now):
    """Not what somebody consolidated, nor the other format's files; what others put there does."""
    out = tmp_path / "v.zarr"
    zarrmask.convert(slices, out, z="1000:1010", ngff=then, scheduler=cluster)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)  # format 3 has no such thing yet
        zarr.consolidate_metadata(out)
    note = out / "labels" / "mine" / "notes.txt"
    note.parent.mkdir(parents=True)
    note.touch()
    zarrmask.convert(
        slices, out, z="1002:1005", ngff=now, chunk=64, overwrite=True, scheduler=cluster
    )
    level = zarr.open_group(out, mode="r")["0"]
    assert (level.metadata.zarr_format, level.chunks) == ({"0.4": 2, "0.5": 3}[now], (64,) * 3)
    np.testing.assert_array_equal(level[:], voxels[2:5])
    files = {"0.4": {".zgroup", ".zattrs"}, "0.5": {"zarr.json"}}[now]
    assert {path.name for path in out.iterdir() if path.is_file()} == files
    assert note.exists()


def test_chunks_levels_and_compressor(slices, voxels, cluster, tmp_path):
    out = tmp_path / "plain.zarr"
    options = {"chunk": 64, "levels": 2, "compressor": "none"}
    zarrmask.convert(slices, out, scheduler=cluster, **options)
    assert sorted(path.name for path in out.glob("[0-9]")) == ["0", "1"]
    array = json.loads((out / "0/.zarray").read_text())
    assert array["compressor"] is None
    assert array["chunks"] == [64] * 3
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], voxels)


def test_a_crop_says_where_it_lay(slices, voxels, cluster, tmp_path):
    out = tmp_path / "crop.zarr"
    zarrmask.convert(slices, out, scheduler=cluster, z=":1020", y="13:150", x="7:133")
    np.testing.assert_array_equal(
        zarr.open_array(out / "0", mode="r")[:], voxels[:20, 13:150, 7:133]
    )
    image = zarrmask.open_pyramid(out)["0/image"]
    assert [float(image[axis][0]) for axis in "zyx"] == [1000, 13, 7]
    assert describe(out)["begins at"].startswith("z 1000, y 13, x 7 (voxels of")


def test_a_conversion_keeps_which_slices_are_missing(slices, cluster, tmp_path):
    for path in sorted(slices.iterdir())[:9:2]:
        shutil.copy(path, tmp_path)
    out = zarrmask.convert(tmp_path, tmp_path / "out.zarr", scheduler=cluster, allow_missing=True)
    assert describe(out)["missing"] == "1001, 1003, 1005, 1007"


def test_a_cropped_run_is_the_whole_ones_part(stack, cluster, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    zarrmask.run(stack, whole, scheduler=cluster, every=7, z="100:114")
    zarrmask.run(stack, part, scheduler=cluster, every=7, z="100:114", y="20:90", x=":99")
    for name in ("volume", "mask", "masked"):
        expected = zarr.open_array(whole / f"{name}.zarr/0", mode="r")[:, 20:90, :99]
        assert expected.any()
        np.testing.assert_array_equal(
            zarr.open_array(part / f"{name}.zarr/0", mode="r")[:], expected
        )


def test_8_bits_by_a_window(slices, voxels, cluster, tmp_path):
    out = tmp_path / "bytes.zarr"
    zarrmask.convert(slices, out, scheduler=cluster, dtype="uint8", window=(1000, 3000))
    array = zarr.open_array(out / "0", mode="r")
    assert array.dtype == np.uint8
    expected = np.clip(np.rint((voxels.astype(float) - 1000) * 255 / 2000), 0, 255)
    np.testing.assert_array_equal(array[:], expected)


def test_signed_greys_by_a_window(voxels, cluster, tmp_path):
    """As medical and many laboratory scanners write them: air below 0."""
    stack = tmp_path / "hounsfield"
    stack.mkdir()
    units = voxels[:20].astype(np.int16) - 1024
    for z, image in enumerate(units):
        tifffile.imwrite(stack / f"{z}.tif", image, compression="zlib", predictor=2)
    with pytest.raises(SettingsError, match=r"int16 .* --window LO HI"):
        zarrmask.convert(stack, tmp_path / "refused.zarr", scheduler=cluster)
    out = tmp_path / "out.zarr"
    zarrmask.convert(stack, out, scheduler=cluster, window=(-1000, 2000), dtype="uint8")
    expected = np.clip(np.rint((units.astype(float) + 1000) * (255 / 3000)), 0, 255)
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], expected)


def test_floats_by_a_window_of_percentiles(voxels, cluster, tmp_path):
    stack = tmp_path / "floats"
    stack.mkdir()
    for z, image in enumerate(voxels[:20]):
        tifffile.imwrite(stack / f"{z}.tif", (image / 5000 - 0.5).astype(np.float32))
    with pytest.raises(SettingsError, match=r"float32 .* --window LO HI"):
        zarrmask.convert(stack, tmp_path / "refused.zarr", scheduler=cluster)
    assert not (tmp_path / "refused.zarr").exists()
    out = tmp_path / "out.zarr"
    zarrmask.convert(stack, out, scheduler=cluster, window="auto")
    low, high = json.loads((out / ".zattrs").read_text())["zarrmask"]["window"]
    assert (low, high) == pytest.approx((-0.495, 0.495), abs=0.005)
    array = zarr.open_array(out / "0", mode="r")
    assert array.dtype == np.uint16
    floats = (voxels[:20] / 5000 - 0.5).astype(np.float32).astype(float)
    expected = np.clip(np.rint((floats - low) * (65535 / (high - low))), 0, 65535)
    np.testing.assert_array_equal(array[:], expected)


@pytest.mark.parametrize(
    ("of_uint16", "window"),
    [
        (lambda image: image.astype(np.float32) / 65535, (0, 1)),
        (lambda image: (image.astype(int) - 32768).astype(np.int16), (-32768, 32767)),
    ],
    ids=["float32", "int16"],
)
def test_other_pixels_are_detected_on(stack, cluster, tmp_path, of_uint16, window):
    """A stack of other grey values, and the same window, give the same masks."""
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(stack.glob("*.tif"))[:8]:
        tifffile.imwrite(other / path.name, of_uint16(tifffile.imread(path)))
    zarrmask.run(other, tmp_path / "a", scheduler=cluster, window=window)
    zarrmask.run(stack, tmp_path / "b", scheduler=cluster, z="100:108", detect_window=(0, 65535))
    for name in ("mask", "masked"):
        first, second = (
            zarr.open_array(tmp_path / out / f"{name}.zarr/0", mode="r")[:] for out in "ab"
        )
        assert first.any()
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("links", [True, False])
def test_the_masked_volume_shares_what_lies_wholly_inside(stack, cluster, tmp_path, links):
    out = tmp_path / "out"
    options = {"propagate": "hold", "chunk": 16, "links": links}  # of which the inside is exact
    zarrmask.run(stack, out, scheduler=cluster, **options)
    volume, mask, masked = (
        zarr.open_array(out / f"{name}.zarr/0", mode="r") for name in ("volume", "mask", "masked")
    )
    np.testing.assert_array_equal(masked[:], volume[:] * (mask[:] > 0))
    found = {True: 0, False: 0}
    for file in (path for path in out.glob("masked.zarr/0/*/*/*") if path.is_file()):
        place = file.relative_to(out / "masked.zarr/0")
        chunk = mask.get_block_selection(tuple(map(int, place.parts)))
        shared = file.samefile(out / "volume.zarr/0" / place)
        assert shared == (links and bool(np.all(chunk)))
        found[shared] += 1
    assert found[False] > 10
    assert (found[True] > 10) == links
    coarser = [file for file in out.glob("masked.zarr/1/*/*/*") if file.is_file()]
    shared = [
        file.samefile(out / "volume.zarr/1" / file.relative_to(out / "masked.zarr/1"))
        for file in coarser
    ]
    assert any(shared) == links
    assert not all(shared)


def test_a_run_in_ngff_05(stack, cluster, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    zarrmask.run(stack, old, scheduler=cluster, every=7, z="100:110")
    zarrmask.run(stack, new, scheduler=cluster, every=7, z="100:110", ngff="0.5", chunk=64)
    for name in ("volume", "mask", "masked"):
        Image.from_zarr(zarr.open_group(new / f"{name}.zarr", mode="r"))
        first, second = (zarr.open_array(out / f"{name}.zarr/1", mode="r")[:] for out in (old, new))
        assert first.any()
        np.testing.assert_array_equal(first, second)
    label = zarr.open_group(new / "masked.zarr/labels/mask", mode="r")
    assert label.attrs["ome"]["image-label"]["source"] == {"image": "../../"}
    assert label["0"][:].any()
    assert not (new / "scroll.khprj").exists()
    assert "khartes" in (old / "report.html").read_text()
    assert "khartes" not in (new / "report.html").read_text()


def test_a_pyramid_that_is_read_is_the_volume(stack, cluster, tmp_path):
    volume = tmp_path / "volume.zarr"
    zarrmask.convert(stack, volume, scheduler=cluster)
    out = tmp_path / "out"
    record = zarrmask.run(volume, out, scheduler=cluster, every=7)
    assert record["volume"] == str(volume)
    assert not (out / "volume.zarr").exists()
    masked, mask = (zarr.open_array(out / f"{n}.zarr/0", mode="r")[:] for n in ("masked", "mask"))
    whole = zarr.open_array(volume / "0", mode="r")[:]
    assert masked.any()
    np.testing.assert_array_equal(masked, np.where(mask > 0, whole, 0))
    project = (out / "scroll.khprj/volumes/volume.volzarr").read_text()
    assert str(volume) in project
    assert "show the masked stack" not in (out / "report.html").read_text()


@pytest.mark.parametrize("options", [{"volume": True}, {"z": "0:20"}, {"window": (0, 9000)}])
def test_a_pyramid_that_is_not_the_volume_is_written_anew(stack, cluster, tmp_path, options):
    volume = tmp_path / "volume.zarr"
    zarrmask.convert(stack, volume, scheduler=cluster)
    record = zarrmask.run(volume, tmp_path / "out", scheduler=cluster, every=7, **options)
    assert record["volume"] is None
    assert (tmp_path / "out/volume.zarr/0/.zarray").exists()


def where(path):
    """Position and sides of an image's first voxel."""
    image = zarrmask.open_pyramid(path)["0/image"]
    return [(float(image[axis][0]), image[axis].attrs.get("units")) for axis in "zyx"]


def test_all_viewers_see_where_a_crop_of_ngff_05_lies(stack, cluster, tmp_path):
    """Most heed what stands with a level alone; khartes, which wants it apart, reads 0.4."""
    options = {"voxel_size": 7.91, "z": "103:", "chunk": 16, "scheduler": cluster}
    old, new = (
        zarrmask.convert(stack, tmp_path / f"{ngff}.zarr", ngff=ngff, **options)
        for ngff in ("0.4", "0.5")
    )
    assert where(old) == where(new)
    (multiscale,) = json.loads((new / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert "coordinateTransformations" not in multiscale
    for n, dataset in enumerate(multiscale["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        assert scale["scale"] == pytest.approx([7.91 * 2**n] * 3)
        middle = (2**n - 1) / 2
        expected = [7.91 * (start + middle) for start in (103, 0, 0)]
        assert translation["translation"] == pytest.approx(expected)


def test_masks_lie_over_a_volume_that_was_cut_out(stack, cluster, tmp_path):
    options = {"scheduler": cluster, "voxel_size": 7.91, "chunk": 16}
    volume = zarrmask.convert(stack, tmp_path / "v.zarr", z="103:", y="10:150", **options)
    assert where(volume)[0] == (pytest.approx(103 * 7.91), "micrometer")
    record = zarrmask.run(volume, tmp_path / "out", scheduler=cluster, every=7, z="3:9")
    assert record["volume"] is None
    z, *in_plane = where(tmp_path / "out/masked.zarr")
    assert (z[0], in_plane) == (pytest.approx(106 * 7.91), where(volume)[1:])
    record = zarrmask.run(volume, tmp_path / "whole", scheduler=cluster, every=7)
    assert record["volume"] == str(volume)
    assert where(tmp_path / "whole/masked.zarr") == where(volume)


def test_a_volume_of_oblong_voxels_does_not_serve(stack, cluster, tmp_path):
    volume = zarrmask.convert(stack, tmp_path / "v.zarr", scheduler=cluster, chunk=16)
    attributes = json.loads((volume / ".zattrs").read_text())
    scales = [{"type": "scale", "scale": [20.0, 7.91, 7.91]}]
    attributes["multiscales"][0]["coordinateTransformations"] = scales
    (volume / ".zattrs").write_text(json.dumps(attributes))
    said = Reporter()
    record = zarrmask.run(volume, tmp_path / "out", scheduler=cluster, every=7, reporter=said)
    assert record["volume"] is None
    assert any("20 x 7.91 x 7.91, not cubic" in warning for warning in said.warnings)


def test_another_voxel_size_than_is_stated_is_told_of(stack, cluster, tmp_path):
    volume = zarrmask.convert(
        stack, tmp_path / "v.zarr", scheduler=cluster, voxel_size=7.91, chunk=16
    )
    for size, told in ((3.24, True), (7.91, False), (None, False)):
        said = Reporter()
        open_input(str(volume), Settings(voxel_size=size), said)
        warned = any("7.91 micrometres by what it states" in warning for warning in said.warnings)
        assert warned == told


def test_a_size_without_a_unit_is_told_of(stack, cluster, tmp_path):
    volume = zarrmask.convert(
        stack, tmp_path / "v.zarr", scheduler=cluster, voxel_size=7.91, chunk=16
    )
    attributes = json.loads((volume / ".zattrs").read_text())
    for axis in attributes["multiscales"][0]["axes"]:
        del axis["unit"]
    (volume / ".zattrs").write_text(json.dumps(attributes))
    for size, told in ((None, True), (7.91, False)):
        said = Reporter()
        _, used = open_input(str(volume), Settings(voxel_size=size), said)
        assert used.voxel_size == 7.91
        assert any("micrometres are taken" in warning for warning in said.warnings) == told


def test_a_stated_voxel_size_is_part_of_what_a_run_is(stack, cluster, tmp_path):
    volume = zarrmask.convert(
        stack, tmp_path / "v.zarr", scheduler=cluster, voxel_size=7.91, chunk=16
    )
    out = zarrmask.convert(volume, tmp_path / "out.zarr", scheduler=cluster, chunk=16)
    attributes = (volume / ".zattrs").read_text()
    assert "791.0" in attributes  # slice 100: its place stays, in voxels
    twice = attributes.replace("7.91", "15.82").replace("791.0", "1582.0")
    (volume / ".zattrs").write_text(twice)
    with pytest.raises(ZarrmaskError, match=r"--voxel-size: 7\.91 then, 15\.82 now"):
        zarrmask.convert(volume, out, scheduler=cluster, chunk=16)
    said = Reporter()
    zarrmask.convert(volume, out, scheduler=cluster, chunk=16, voxel_size=7.91, reporter=said)
    assert any("15.82 micrometres by what it states" in warning for warning in said.warnings)


def test_a_level_that_is_missing(stack, cluster, tmp_path):
    volume = zarrmask.convert(stack, tmp_path / "v.zarr", scheduler=cluster, chunk=16)
    shutil.rmtree(volume / "1")
    with pytest.raises(ZarrmaskError, match="lacks a level"):
        zarrmask.open_pyramid(volume)
    assert describe(volume)["stack"] == "OME-Zarr"
    record = zarrmask.run(volume, tmp_path / "out", scheduler=cluster, every=7)
    assert record["volume"] is None


def test_images_of_ngff_0_2(stack, cluster, tmp_path):
    """Which names no axes, and no scales."""
    volume = zarrmask.convert(stack, tmp_path / "v.zarr", scheduler=cluster, chunk=16)
    attributes = json.loads((volume / ".zattrs").read_text())
    paths = [{"path": entry["path"]} for entry in attributes["multiscales"][0]["datasets"]]
    attributes["multiscales"] = [{"version": "0.2", "datasets": paths}]
    (volume / ".zattrs").write_text(json.dumps(attributes))
    with pytest.raises(ZarrmaskError, match=r"NGFF 0\.2.*expected 0\.4 or 0\.5"):
        zarrmask.open_pyramid(volume)
    assert zarrmask.run(volume, tmp_path / "out", scheduler=cluster, every=7)["volume"] is None


def test_what_is_unfinished_is_no_stack(stack, cluster, tmp_path):
    class Stopping(Reporter):
        def stage(self, name, *arguments, **options):
            if name == "writing":
                raise KeyboardInterrupt
            return super().stage(name, *arguments, **options)

    for ngff in ("0.4", "0.5"):
        out = tmp_path / f"{ngff}.zarr"
        options = {"scheduler": cluster, "ngff": ngff, "chunk": 16}
        with pytest.raises(KeyboardInterrupt):
            zarrmask.convert(stack, out, **options, reporter=Stopping())
        for path in (out, out / "0"):
            with pytest.raises(StackError, match="has not finished writing it"):
                zarrmask.open_stack(path)
        zarrmask.convert(stack, out, **options)
        assert zarrmask.open_pyramid(out).attrs["ngff"] == ngff


@pytest.mark.parametrize(("halved", "serves"), [("down", True), ("y and x", False)])
def test_a_pyramid_of_another_maker(stack, cluster, tmp_path, halved, serves):
    """Levels that are rounded down serve as the volume; those of deep slices do not."""
    slices = np.stack([tifffile.imread(path) for path in sorted(stack.iterdir())])[:, :149, :169]
    volume = tmp_path / "volume.zarr"
    group = zarr.create_group(volume, zarr_format=2)
    levels = {
        "down": [slices, slices[:22:2, :148:2, :168:2]],
        "y and x": [slices, slices[:, ::2, ::2]],
    }[halved]
    datasets = []
    for path, level in enumerate(levels):
        group.create_array(str(path), data=level)
        scale = [slices.shape[0] / level.shape[0], 2**path, 2**path]
        scales = [{"type": "scale", "scale": np.round(scale).tolist()}]
        datasets.append({"path": str(path), "coordinateTransformations": scales})
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    out = tmp_path / "out"
    record = zarrmask.run(volume, out, scheduler=cluster, every=7)
    assert record["volume"] == (str(volume) if serves else None)
    assert (out / "report.html").exists()
