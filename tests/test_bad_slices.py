"""Slices that turn out to be unreadable while a run goes on: it stops, or interpolates them."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from distributed import Client, span

import zarrmask
from zarrmask.coco.export import annotate
from zarrmask.errors import OutputError, StackError
from zarrmask.info import describe
from zarrmask.planning import reading
from zarrmask.progress import Reporter
from zarrmask.pyramid import brick_grid
from zarrmask.records.damage import Damage
from zarrmask.records.journal import Journal
from zarrmask.running.bridging import REPRIEVES, Bridger
from zarrmask.stack import UnreadableError, open_source, remote, unreadable
from zarrmask.workers.cluster import come_to_rest

SHAPE = (24, 300, 700)  # four bricks of the smallest size
BAD = (0, 7, 8, 20)


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(2).integers(0, 60_000, SHAPE, np.uint16)


@pytest.fixture(scope="module")
def mended(volume):
    """The volume with the bad slices interpolated by NumPy, half up."""
    exact, healed = volume.astype(float), volume.copy()
    healed[0] = volume[1]
    healed[7] = np.floor((2 * exact[6] + exact[9]) / 3 + 0.5)
    healed[8] = np.floor((exact[6] + 2 * exact[9]) / 3 + 0.5)
    healed[20] = np.floor((exact[19] + exact[21]) / 2 + 0.5)
    return healed


@pytest.fixture
def small_bricks(monkeypatch):
    def smallest(shape, itemsize, block, budget, step):
        return brick_grid(shape, itemsize, block, 1, step)

    monkeypatch.setattr("zarrmask.planning.forecast.brick_grid", smallest)


def tiffs(folder, voxels, **options):
    folder.mkdir(exist_ok=True)
    for z, image in enumerate(voxels):
        tifffile.imwrite(folder / f"{z}.tif", image, **options)


def pngs(folder, voxels):
    folder.mkdir()
    for z, image in enumerate(voxels):
        assert cv2.imwrite(str(folder / f"{z}.png"), image)


def thin_chunks(folder, voxels):
    options = {"shape": SHAPE, "chunks": (1, 128, 256), "dtype": "u2"}
    zarr.create_array(folder, **options)[:] = voxels


def spoil_strip(folder, z):
    """Damage the last strip or tile of a slice; its header, size and times stay."""
    with tifffile.TiffFile(folder / f"{z}.tif") as tif:
        page = tif.pages.first
        offset, count = page.dataoffsets[-1], page.databytecounts[-1]
    with (folder / f"{z}.tif").open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)


def spoil_png(folder, z):
    with (folder / f"{z}.png").open("r+b") as file:
        file.seek(2000)
        file.write(bytes(1000))


def spoil_chunk(folder, z):
    (folder / "c" / str(z) / "2" / "1").write_bytes(b"torn")


def leave(folder, z):
    """Spoil nothing before the run."""


def truncate(folder, z):
    """Cut a slice short within its last rows, which only some of the bricks hold."""
    path = folder / f"{z}.tif"
    path.write_bytes(path.read_bytes()[: -10 * SHAPE[2] * 2])


def vanish(folder, z):
    (folder / f"{z}.tif").unlink()


class Vandal(Reporter):
    """Lets something happen as a stage begins."""

    def __init__(self, stage, act):
        super().__init__()
        self.when, self.act = stage, act

    def stage(self, name, *args, **kwargs):
        if name == self.when:
            self.when = None
            self.act()
        return super().stage(name, *args, **kwargs)


class Weary(Reporter):
    """Ends the run as soon as a slice is interpolated."""

    def say(self, text):
        super().say(text)
        if "is interpolated" in text:
            raise KeyboardInterrupt


def stop():
    raise KeyboardInterrupt


def contents(folder):
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".zattrs"}


def record_of(out):
    return json.loads((out / ".zattrs").read_text())["zarrmask"]


@pytest.fixture
def here(monkeypatch, here):
    """The same, where tries follow each other soon."""
    monkeypatch.setattr(remote, "PAUSE", 0.001)
    monkeypatch.setattr(unreadable, "PAUSES", (0.02,) * 4)
    return here


# How slices are packed, what spoils one before the run, and what spoils one in mid-run.
KINDS = {
    "strips": (partial(tiffs, compression="lzw", rowsperstrip=64), spoil_strip, leave),
    "tiles": (partial(tiffs, compression="deflate", tile=(256, 256)), spoil_strip, leave),
    "png": (pngs, spoil_png, leave),
    "thin-chunks": (thin_chunks, spoil_chunk, leave),
    "truncated": (tiffs, leave, truncate),
    "gone": (tiffs, leave, vanish),
}


@pytest.fixture(scope="module")
def expected(mended, cluster, tmp_path_factory):
    """Files of the conversion of the stack that was mended beforehand."""
    folder = tmp_path_factory.mktemp("mended")
    tiffs(folder / "stack", mended)
    out = zarrmask.convert(folder / "stack", folder / "out.zarr", scheduler=cluster)
    return contents(out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small_bricks")
def test_bad_slices_are_interpolated_to_the_byte(kind, volume, expected, here, tmp_path):
    pack, before, during = KINDS[kind]
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    pack(stack, volume)
    for z in BAD:
        before(stack, z)
    vandal = Vandal("writing", lambda: [during(stack, z) for z in BAD])
    options = {"scheduler": here, "on_bad_slice": "interpolate", "reporter": vandal}
    zarrmask.convert(stack, out, **options)
    assert contents(out) == expected
    entries = record_of(out)["bad_slices"]
    assert [(entry["z"], entry["from"]) for entry in entries] == [
        (0, [1]),
        (7, [6, 9]),
        (8, [6, 9]),
        (20, [19, 21]),
    ]
    assert all(entry["treated"] == "interpolated" and entry["why"] for entry in entries)
    assert any("4 slices cannot be read, inter" in said for said in vandal.warnings)
    assert {path.name for path in tmp_path.iterdir()} == {"stack", "out.zarr"}
    assert describe(out)["bad slices"] == ", ".join(f"{z} interpolated" for z in BAD)


def test_a_stack_that_changes_while_it_is_read(volume, cluster, tmp_path):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume)
    vandal = Vandal("writing", lambda: os.utime(stack / "5.tif", (1, 1)))
    with pytest.raises(StackError, match="changed while it was read"):
        zarrmask.convert(stack, out, scheduler=cluster, reporter=vandal)
    with pytest.raises(OutputError, match="--overwrite"):
        zarrmask.convert(stack, out, scheduler=cluster)
    zarrmask.convert(stack, out, scheduler=cluster, overwrite=True)


@pytest.mark.usefixtures("small_bricks")
def test_it_stops_and_goes_on_when_the_slice_is_repaired(volume, cluster, tmp_path):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume, compression="deflate", tile=(256, 256))
    spoil_strip(stack, 7)
    with pytest.raises(StackError, match=r"7\.tif: slice 7 cannot be read: .*\n.*repair") as caught:
        zarrmask.convert(stack, out, scheduler=cluster)
    assert "--on-bad-slice interpolate" in str(caught.value)
    assert [entry["z"] for entry in record_of(out)["bad_slices"]] == [7]
    with pytest.raises(StackError, match="slice 7 cannot be read"):
        zarrmask.convert(stack, out, scheduler=cluster)
    repaired = volume.copy()
    repaired[7] = 40_000 - volume[7] // 2  # scanned anew
    tifffile.imwrite(stack / "7.tif", repaired[7])  # uncompressed, at another time
    reporter = Reporter()
    zarrmask.convert(stack, out, scheduler=cluster, reporter=reporter)
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], repaired)
    (entry,) = record_of(out)["bad_slices"]
    assert (entry["z"], entry["treated"]) == (7, "read later")
    assert any("could not be read at first: 7" in said for said in reporter.warnings)
    zarrmask.convert(stack, out, scheduler=cluster)  # it is finished
    tifffile.imwrite(stack / "8.tif", volume[7])
    with pytest.raises(OutputError, match="was made with other settings or input"):
        zarrmask.convert(stack, out, scheduler=cluster)


@pytest.mark.parametrize("spoil", [truncate, vanish])
@pytest.mark.usefixtures("small_bricks")
def test_a_run_that_stopped_goes_on_by_interpolating(spoil, volume, expected, cluster, tmp_path):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume)
    # Of a first or last slice that is gone nobody would know when the stack is opened anew.
    vandal = Vandal("writing", lambda: [(spoil if z else truncate)(stack, z) for z in BAD])
    with pytest.raises(StackError, match="repair that, then run the same command again"):
        zarrmask.convert(stack, out, scheduler=cluster, reporter=vandal)
    with pytest.raises(StackError, match="cannot be read as one volume"):
        zarrmask.convert(stack, out, scheduler=cluster)
    options = {"scheduler": cluster, "on_bad_slice": "interpolate"}
    with pytest.raises(KeyboardInterrupt):
        zarrmask.convert(stack, out, **options, reporter=Weary())
    zarrmask.convert(stack, out, **options)
    assert contents(out) == expected
    for z in BAD:
        tifffile.imwrite(stack / f"{z}.tif", volume[z])  # what is interpolated once stays so
    zarrmask.convert(stack, out, scheduler=cluster)
    assert contents(out) == expected


@pytest.mark.usefixtures("small_bricks")
def test_overwriting_reads_what_was_interpolated(volume, cluster, tmp_path):
    """Also where the output is unfinished: else one would go on with what is interpolated."""
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume)
    truncate(stack, 7)
    options = {"scheduler": cluster, "on_bad_slice": "interpolate"}
    with pytest.raises(KeyboardInterrupt):
        zarrmask.convert(stack, out, **options, reporter=Vandal("writing from level 2", stop))
    assert record_of(out)["state"] == "unfinished"
    tifffile.imwrite(stack / "7.tif", volume[7])
    zarrmask.convert(stack, out, **options, overwrite=True)
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], volume)
    assert record_of(out)["bad_slices"] == []


@pytest.mark.parametrize("stage", ["sampling contrast", "writing"])
def test_a_disk_that_went_away_is_no_bad_slice(stage, volume, cluster, tmp_path):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume)
    window = {"window": "auto"} if stage == "sampling contrast" else {}
    options = {"scheduler": cluster, "on_bad_slice": "interpolate", **window}
    vandal = Vandal(stage, lambda: stack.rename(tmp_path / "away"))
    with pytest.raises(StackError, match=r"24 slices in a row|nor can those around it"):
        zarrmask.convert(stack, out, **options, reporter=vandal)
    (tmp_path / "away").rename(stack)
    zarrmask.convert(stack, out, **options)
    assert record_of(out)["bad_slices"] == []
    if stage == "writing":
        np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], volume)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("policy", ["stop", "interpolate"])
def test_a_deep_chunk_stops_the_run_until_it_is_put_back_or_removed(
    policy, removed, volume, cluster, tmp_path
):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    zarr.create_array(
        stack, shape=SHAPE, chunks=(12, 128, 256), dtype="u2", fill_value=5, compressors=None
    )[:] = volume
    chunk = stack / "c" / "1" / "2" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"torn")
    options = {"scheduler": cluster, "on_bad_slice": policy}
    told = r"slices 12 to 23, .* \(damaged: c/1/2/1\)\na chunk holds 12 slices, .*remove that file"
    for _ in range(2):
        with pytest.raises(StackError, match=told):
            zarrmask.convert(stack, out, **options)
    expected = volume.copy()
    if removed:
        chunk.unlink()
        expected[12:, 256:, 256:512] = 5
    else:
        chunk.write_bytes(whole)
    zarrmask.convert(stack, out, **options)
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], expected)
    entries = record_of(out)["bad_slices"]
    assert [entry["z"] for entry in entries] == [*range(12, 24)]
    assert {entry["treated"] for entry in entries} == {"read later"}


def test_a_disk_of_deep_chunks_that_went_away_damages_none(volume, cluster, tmp_path):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    zarr.create_array(stack, shape=SHAPE, chunks=(12, 128, 256), dtype="u2")[:] = volume
    chunks = [path for path in stack.rglob("c/*/*/*") if path.is_file()]
    whole = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in chunks}
    for path in chunks:
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(whole[path][1],) * 2)
    with pytest.raises(StackError, match="slices 0 to 11"):
        zarrmask.convert(stack, out, scheduler=cluster, on_bad_slice="interpolate")
    for path, (content, when) in whole.items():
        path.write_bytes(content)
        os.utime(path, ns=(when, when))
    zarrmask.convert(stack, out, scheduler=cluster)
    assert record_of(out)["bad_slices"] == []
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], volume)


@pytest.mark.parametrize("failures", [2, 10**6])
def test_a_server_that_does_not_give_a_slice(failures, web, volume, mended, here, tmp_path):
    tiffs(web.folder / "stack", volume)
    left = dict.fromkeys(("/stack/0.tif", "/stack/20.tif"), failures)

    def fault(method, path):
        if left.get(path, 0) <= 0:
            return None
        left[path] -= 1
        return 500

    vandal = Vandal("writing", lambda: setattr(web, "fault", fault))
    out = tmp_path / "out.zarr"
    options = {"scheduler": here, "on_bad_slice": "interpolate", "reporter": vandal}
    zarrmask.convert(f"{web.url}/stack", out, **options)
    wanted = volume.copy()
    if failures > 2:
        wanted[[0, 20]] = mended[[0, 20]]
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], wanted)
    entries = record_of(out)["bad_slices"]
    assert [entry["z"] for entry in entries] == ([0, 20] if failures > 2 else [])
    assert all("the server answers 500" in entry["why"] for entry in entries)


def begun(folder, volume):
    """Five slices as a stack, and the journal of a conversion of it that was begun."""
    tiffs(folder / "stack", volume[:5])
    source = open_source(folder / "stack")
    journal = Journal.of_conversion(folder / "out.zarr")
    journal.start({"input": {"fingerprint": source.fingerprint()}})
    return source, journal


def test_what_only_a_worker_cannot_read_is_not_bad(volume, here, tmp_path):
    source, journal = begun(tmp_path, volume)
    error = UnreadableError(source.path, source.shape, {2: "torn"}, "slice 2 is torn")
    bridger = Bridger(Damage(journal, source), "interpolate", lambda indices: None, Reporter())
    turns = iter([error] * REPRIEVES)

    def work(stack):
        if turn := next(turns, None):
            raise turn
        return stack[2]

    with Client(here) as client, span("mending"):
        np.testing.assert_array_equal(bridger.bridging(client, work), volume[2])
        turns = iter([error])
        with pytest.raises(StackError, match="not where its workers are"):
            bridger.bridging(client, work)
    assert bridger.damage.entries == []


def test_a_slice_that_is_well_from_here_stays_part_of_the_input(volume, here, tmp_path):
    """A worker may lack the disk: what is entered as bad may be another slice afterwards."""
    source, journal = begun(tmp_path, volume)
    error = UnreadableError(source.path, source.shape, {2: "torn"}, "slice 2 is torn")
    bridger = Bridger(Damage(journal, source), "stop", lambda indices: None, Reporter())

    def work(stack):
        raise error

    with Client(here) as client, span("mending"):
        with pytest.raises(StackError, match="repair that"):
            bridger.bridging(client, work)
        assert bridger.damage.entries == []
        truncate(tmp_path / "stack", 2)
        with pytest.raises(StackError, match="repair that"):
            bridger.bridging(client, work)
    assert [entry["z"] for entry in bridger.damage.entries] == [2]


def test_no_slice_counts_as_interpolated_before_what_was_made_of_it_is_forgotten(volume, tmp_path):
    source, journal = begun(tmp_path, volume)
    damage = Damage(journal, source)

    def stopped(indices):
        assert indices == [2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        damage.enter({2: "torn"}, stopped, interpolate=True)
    assert damage.interpolated == []
    damage.enter({2: "torn"}, lambda indices: None, interpolate=True)
    assert damage.interpolated == [2]


@pytest.mark.parametrize("stage", ["sampling contrast", "writing"])
def test_what_is_back_in_time_is_read(stage, volume, here, tmp_path, monkeypatch):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume)

    def rest_and_bring_back(client, reporter):
        come_to_rest(client, reporter)
        (tmp_path / "away").rename(stack / "0.tif")

    monkeypatch.setattr("zarrmask.running.bridging.come_to_rest", rest_and_bring_back)
    vandal = Vandal(stage, lambda: (stack / "0.tif").rename(tmp_path / "away"))
    options = {"scheduler": here, "on_bad_slice": "interpolate", "reporter": vandal}
    zarrmask.convert(stack, out, **options, window="auto")
    zarrmask.convert(stack, tmp_path / "whole.zarr", scheduler=here, window="auto")
    assert record_of(out)["bad_slices"] == []
    assert contents(out) == contents(tmp_path / "whole.zarr")


def test_slices_that_are_gone_are_met_one_after_another(volume, here, tmp_path):
    stack, out = tmp_path / "stack", tmp_path / "out.zarr"
    tiffs(stack, volume)
    # The sample reads slices 0, 3, 7, 10, 13, 16, 20 and 23, one a task.
    vandal = Vandal("sampling contrast", lambda: [vanish(stack, z) for z in (7, 8, 20)])
    options = {"scheduler": here, "on_bad_slice": "interpolate", "reporter": vandal}
    zarrmask.convert(stack, out, **options, window="auto")
    entries = record_of(out)["bad_slices"]
    assert [(entry["z"], entry["from"]) for entry in entries] == [
        (7, [6, 9]),
        (8, [6, 9]),
        (20, [19, 21]),
    ]
    for z in (7, 8, 20):
        tifffile.imwrite(stack / f"{z}.tif", volume[z])
    said = Vandal("", None)
    zarrmask.convert(stack, out, scheduler=here, window="auto", reporter=said)
    assert said.stages == []  # it is finished, and known again


def test_masks_are_not_interpolated(volume, here, tmp_path):
    tiffs(tmp_path / "stack", volume[:5])
    source = open_source(tmp_path / "stack")
    journal = Journal.of_conversion(tmp_path / "out.zarr")
    bridger = Bridger(Damage(journal, source), "interpolate", lambda indices: None, Reporter())

    def work(stack):
        raise UnreadableError("masks", source.shape, {2: "torn"}, "mask 2 is torn")

    with Client(here) as client, pytest.raises(UnreadableError, match=r"^mask 2 is torn$"):
        bridger.bridging(client, work)


def test_coarser_levels_are_not_interpolated(volume, here, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SAMPLED_SIDE", 60)
    tiffs(tmp_path / "stack", volume)
    pyramid = zarrmask.convert(tmp_path / "stack", tmp_path / "pyramid.zarr", scheduler=here)
    chunk = pyramid / "2" / "0" / "0" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"torn")
    options = {"scheduler": here, "on_bad_slice": "interpolate", "detect_window": "auto"}
    options |= {"every": 20, "mend": False}
    with pytest.raises(
        StackError, match=r"zarr/2: slices 0 to 5, .*\na coarser level, .*repair it"
    ):
        zarrmask.run(pyramid, tmp_path / "out", **options)
    chunk.write_bytes(whole)
    assert zarrmask.run(pyramid, tmp_path / "out", **options)["bad_slices"] == []


@pytest.fixture(scope="module")
def damaged_run(stack, cluster, tmp_path_factory):
    """A run whose keyframe 112 and slice 109 cannot be read; and one that was mended before."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(stack, folder / "mended")
    (folder / "damaged").mkdir()
    for path in sorted(stack.glob("*.tif")):
        image = tifffile.imread(path)
        tifffile.imwrite(folder / "damaged" / path.name, image, compression="lzw", rowsperstrip=50)
        if path.stem in ("00109", "00112"):
            z = int(path.stem)
            around = [tifffile.imread(stack / f"{n:05d}.tif").astype(int) for n in (z - 1, z + 1)]
            healed = ((around[0] + around[1] + 1) // 2).astype(image.dtype)
            tifffile.imwrite(folder / "mended" / path.name, healed)
            spoil_strip(folder / "damaged", path.stem)
    options = {"every": 12, "dilate": 5, "scheduler": cluster}
    zarrmask.run(folder / "mended", folder / "expected", **options)
    out = folder / "out"
    return out, zarrmask.run(folder / "damaged", out, **options, on_bad_slice="interpolate")


def test_a_run_is_that_of_the_mended_stack(damaged_run):
    out, record = damaged_run
    for name in ("volume", "mask", "masked", "keyframes"):
        expected = contents(out.parent / "expected" / f"{name}.zarr")
        assert contents(out / f"{name}.zarr") == expected
    assert [(entry["z"], entry["from"]) for entry in record["bad_slices"]] == [
        (109, [108, 110]),
        (112, [111, 113]),
    ]
    assert json.loads((out / "run.json").read_text())["bad_slices"] == record["bad_slices"]


def test_people_are_told(damaged_run):
    out, record = damaged_run
    assert sum("interpolated from those around: 109, 112" in w for w in record["warnings"]) == 1
    assert describe(out)["bad slices"] == "109 interpolated, 112 interpolated"
    assert describe(out.parent / "expected")["bad slices"] == "none"
    page = (out / "report.html").read_text()
    assert "Slices that could not be read" in page
    assert "interpolated from 111 and 113" in page
    assert 'class="bad"' in page
    assert 'class="bad"' not in (out.parent / "expected" / "report.html").read_text()


def test_a_damaged_run_is_corrected_as_it_was_read(damaged_run, cluster):
    out, _ = damaged_run
    for run in (out, out.parent / "expected"):
        zarrmask.redo(run, z="104:112", hold=103, scheduler=cluster)
    for name in ("mask", "masked"):
        expected = contents(out.parent / "expected" / f"{name}.zarr")
        assert contents(out / f"{name}.zarr") == expected


def test_what_follows_a_damaged_run_is_as_of_the_mended_one(damaged_run, cluster, tmp_path):
    out, _ = damaged_run
    for name, run in (("damaged", out), ("mended", out.parent / "expected")):
        made, stack = tmp_path / name, out.parent / name
        annotate(run, made / "annotated", worst=None, png=True)
        zarrmask.redo(run, z="104:116", detect_every=3, scheduler=cluster)
        for what in ("volume", "masked", "mask"):
            zarrmask.export(run, made / what, what=what, scheduler=cluster)
        options = {"on_bad_slice": "interpolate", "scheduler": cluster}
        zarrmask.apply(stack, run, made / "applied", **options)
    made = ("annotated/images", "volume", "masked", "mask")
    zarrs = (f"applied/{name}.zarr" for name in ("volume", "masked", "mask", "keyframes"))
    for folder in (*made, *zarrs):
        damaged, mended = (contents(tmp_path / name / folder) for name in ("damaged", "mended"))
        for files in (damaged, mended):
            files.pop("export.json", None)  # says which stack it was
        assert damaged
        assert damaged == mended
    applied = json.loads((tmp_path / "damaged/applied/run.json").read_text())
    assert [entry["z"] for entry in applied["bad_slices"]] == [109, 112]


def test_the_command_line_has_the_option(zarrmask, volume, cluster, tmp_path):
    tiffs(tmp_path / "stack", volume[:6], compression="lzw")
    spoil_strip(tmp_path / "stack", 3)
    arguments = ("convert", tmp_path / "stack", tmp_path / "out.zarr", "--scheduler", cluster)
    code, _, err = zarrmask(*arguments)
    assert code == 1
    assert "3.tif: slice 3 cannot be read" in err
    code, _, err = zarrmask(*arguments, "--on-bad-slice", "interpolate")
    assert code == 0
    assert "slice 3 is interpolated from 2 and 4" in " ".join(err.split())
    assert Path(tmp_path / "out.zarr" / ".zattrs").exists()
