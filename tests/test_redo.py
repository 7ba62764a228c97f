"""Corrections of finished runs: what changes, what stays, what is remembered."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given as given_by
from hypothesis import strategies as st

import zarrmask as package
from zarrmask.correcting.finished import open_run
from zarrmask.correcting.redo import held_at_once, redo
from zarrmask.errors import CheckpointError, OutputError, SettingsError, StackError
from zarrmask.given.apply import apply
from zarrmask.images.export import export
from zarrmask.info import describe
from zarrmask.masking import HeldMasks, KeyframeStore
from zarrmask.masking.layers import Layer, LayeredMasks
from zarrmask.progress import Reporter
from zarrmask.pyramid import step_grid, touched
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.stack import open_source
from zarrmask.workers.crew import find_crew

SHAPE = (100, 600)
NUMBERS = range(100, 170)
OPTIONS = {"chunk": 16, "voxel_size": 8.0}
"""Chunks of 16: bricks of 32 x 32 x 600, four levels, two passes."""


def level(out, name, n=0):
    return zarr.open_array(out / f"{name}.zarr" / str(n), mode="r")[:]


def ellipse(number, share=1.0):
    """A mask that drifts with its number."""
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    y, x = y / SHAPE[0] - 0.5, x / SHAPE[1] - 0.4 - 0.001 * (number - 100)
    return ((y / 0.2) ** 2 + (x / 0.3) ** 2 < share).astype(np.uint8) * 255


def painted(folder, masks):
    folder.mkdir()
    for number, mask in masks.items():
        cv2.imwrite(str(folder / f"{number:05d}.png"), mask)
    return folder


def files(out, *names):
    """Chunk files of pyramids, by their path."""
    return {
        path.relative_to(out).as_posix(): path
        for name in names
        for path in (out / f"{name}.zarr").rglob("*")
        if path.is_file() and not path.is_symlink() and path.name[0].isdigit()
    }


def stamps(out, *names):
    return {name: path.stat().st_mtime_ns for name, path in files(out, *names).items()}


def contents(out, *names):
    return {name: path.read_bytes() for name, path in files(out, *names).items()}


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A stack of three layers of bricks."""
    folder = tmp_path_factory.mktemp("deep")
    noise = np.random.default_rng(3)
    for number in NUMBERS:
        image = noise.integers(1, 2**16, SHAPE, dtype=np.uint16)
        tifffile.imwrite(folder / f"{number:05d}.tif", image)
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """A mask on each tenth slice."""
    return {number: ellipse(number) for number in NUMBERS[::10]}


@pytest.fixture(scope="module")
def masked(deep, masks, cluster, tmp_path_factory):
    """A run with these masks."""
    folder = tmp_path_factory.mktemp("masked")
    apply(deep, painted(folder / "masks", masks), folder / "out", scheduler=cluster, **OPTIONS)
    return folder / "out"


@pytest.fixture
def out(masked, tmp_path):
    """The same, for a test of its own."""
    return shutil.copytree(masked, tmp_path / "out", symlinks=True)


class Stopping(Reporter):
    """Stops before a stage."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def stage(self, name, *arguments, **options):
        if name == self._name:
            raise KeyboardInterrupt
        return super().stage(name, *arguments, **options)


def test_painted_masks_give_the_run_that_had_them(deep, masks, masked, out, cluster, tmp_path):
    better = {135: ellipse(135, share=0.6), 145: ellipse(145, share=1.3)}
    was, volume = stamps(out, "mask", "masked"), stamps(out, "volume")
    said = Reporter.quiet()
    better_ones = painted(tmp_path / "better", better)
    record = redo(out, z="130:150", masks=better_ones, scheduler=cluster, reporter=said)
    assert "the first mask is of slice 135: slices 130 to 134 stay as they are" in said.warnings
    outside = {number: mask for number, mask in masks.items() if number not in (130, 140)}
    everything = {**outside, **better, 130: masks[130]}  # that slices before the first keep
    everything = painted(tmp_path / "all", everything)
    fresh = apply(deep, everything, tmp_path / "fresh", scheduler=cluster, **OPTIONS)
    names = ("volume", "mask", "masked")
    assert contents(out, *names) == contents(tmp_path / "fresh", *names)
    assert record["voxels"] == fresh["voxels"]
    assert stamps(out, "volume") == volume
    is_now = stamps(out, "mask", "masked")
    untouched = [
        name
        for name in was
        for _, n, z in [name.split("/")[:3]]
        if int(n) < 2 and int(z) * 16 * 2 ** int(n) // 32 != 1  # slices 132 to 163 are one layer
    ]
    assert len(untouched) > 40
    assert all(is_now[name] == was[name] for name in untouched)
    (correction,) = record["corrections"]
    assert correction["z"] == [130, 150]
    assert correction["how"]["masks"]["count"] == 2
    assert 0 < correction["bricks"] <= 4
    assert json.loads((out / "run.json").read_text())["corrections"] == [correction]
    assert not (out / ".zarrmask").exists()
    assert (out / "masked.zarr" / "labels" / "mask" / "0").exists()
    export(out, tmp_path / "slices", what="mask", z="145:146", scheduler=cluster)
    seen = tifffile.imread(tmp_path / "slices" / "00145.tif")
    np.testing.assert_array_equal(seen, better[145])


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ngff": "0.5"},
        {"volume": False},
        {"links": False},
        {"z": (103, 165), "y": (10, 90), "x": (50, 560)},
        {"dtype": "uint8", "window": (0, 60_000)},
    ],
    ids=["as it is", "shards", "no volume", "no links", "crop", "8 bits"],
)
def test_whatever_is_written(deep, masks, cluster, tmp_path, options):
    """Of a compressed stack, decoded ahead: what a run leaves that had the masks from the start."""
    (tmp_path / "slices").mkdir()
    for path in deep.iterdir():
        image = tifffile.imread(path)
        tifffile.imwrite(tmp_path / "slices" / path.name, image, compression="lzw")
    options = {"chunk": 16, **options, "scheduler": cluster}
    out, better = tmp_path / "out", {130: ellipse(130, share=0.5)}
    apply(tmp_path / "slices", painted(tmp_path / "masks", masks), out, **options)
    record = redo(out, z="130:140", masks=painted(tmp_path / "better", better), scheduler=cluster)
    everything = painted(tmp_path / "all", {**masks, **better})
    fresh = apply(tmp_path / "slices", everything, tmp_path / "fresh", **options)
    assert record["voxels"] == fresh["voxels"]
    names = [name for name in ("volume", "mask", "masked") if (out / f"{name}.zarr").exists()]
    there = contents(out, *names)
    assert len(there) > 100
    assert there == contents(tmp_path / "fresh", *names)


def test_files_are_shared_again(out, cluster, tmp_path):
    white = painted(tmp_path / "white", {132: np.full(SHAPE, 255, np.uint8)})
    redo(out, z="132:164", masks=white, scheduler=cluster)
    shared = [out / f"{name}.zarr/0/2/0/9" for name in ("volume", "masked")]
    assert shared[0].stat().st_ino == shared[1].stat().st_ino
    np.testing.assert_array_equal(level(out, "masked")[32:64], level(out, "volume")[32:64])


def test_masks_of_a_crop_are_exported_painted_and_given_back(deep, masks, cluster, tmp_path):
    """Also where the crop has the shape of the slices, so that it might be taken for them."""
    out, crop = tmp_path / "out", (slice(None), slice(25, 75), slice(150, 450))
    options = {"y": "25:75", "x": "150:450", "scheduler": cluster}
    apply(deep, painted(tmp_path / "masks", masks), out, **OPTIONS, **options)
    before = level(out, "mask")
    export(out, tmp_path / "mine", what="mask", format="png", z="130:134", scheduler=cluster)
    for number in range(130, 134):
        better = ellipse(number, share=0.3)[crop[1:]]
        cv2.imwrite(str(tmp_path / "mine" / f"{number:05d}.png"), better)
    redo(out, z="130:134", masks=tmp_path / "mine", scheduler=cluster)
    before[30:34] = np.array([ellipse(number, share=0.3) for number in range(130, 134)])[crop]
    np.testing.assert_array_equal(level(out, "mask"), before)


def test_a_good_neighbour_is_held_and_redone(out, cluster):
    before = level(out, "mask")
    redo(out, z="140:155", hold=120, scheduler=cluster)
    expected = before.copy()
    expected[40:55] = before[20]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    redo(out, z="150:", dilate=2, scheduler=cluster)
    kernel = np.ones((12, 12), np.uint8)  # 2 % of 600
    expected[50:] = [cv2.dilate(mask, kernel) for mask in expected[50:]]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    redo(out, z="148:152", erode="96um", scheduler=cluster)
    expected[48:50] = [cv2.erode(mask, kernel) for mask in expected[48:50]]
    expected[50:52] = before[20]  # the dilation is taken back
    np.testing.assert_array_equal(level(out, "mask"), expected)
    volume = level(out, "volume")
    np.testing.assert_array_equal(level(out, "masked"), np.where(expected, volume, 0))
    record = redo(out, z="140:155", hold=159, scheduler=cluster)
    expected[40:55] = expected[59]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    assert record["voxels"]["kept"] == np.count_nonzero(expected)
    assert [list(one["how"]) for one in record["corrections"]] == [
        ["from"],
        ["dilate"],
        ["erode"],
        ["from"],
    ]


def stop_before_level_2(out, arguments):
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, reporter=Stopping("writing from level 2"))


def kill_once_it_writes(out, arguments):
    options = ["--z", arguments["z"], "--from", str(arguments["hold"]), "--workers", "1"]
    command = [sys.executable, "-m", "zarrmask", "redo", out, *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    ledger = out / ".zarrmask" / "finished" / "rewriting" / "writing"
    while process.poll() is None and not list(ledger.glob("*/*/*.json")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    "stop", [stop_before_level_2, pytest.param(kill_once_it_writes, marks=pytest.mark.slow)]
)
def test_a_stopped_correction_goes_on(deep, out, cluster, tmp_path, stop):
    masks = painted(tmp_path / "masks", {120: ellipse(120, share=0.5)})
    arguments = {"z": "105:140", "hold": 120, "scheduler": cluster}
    redo(out, z="120:121", masks=masks, scheduler=cluster)
    other = shutil.copytree(out, tmp_path / "other", symlinks=True)
    stop(out, arguments)
    with pytest.raises(OutputError, match=r"zarrmask redo \S+ --z 105:140 --from 120"):
        redo(out, z="105:141", hold=120, scheduler=cluster)
    with pytest.raises(OutputError, match="no run undoes"):
        apply(deep, masks, out, scheduler=cluster, **OPTIONS)
    with pytest.raises(OutputError, match=r"first finish it: zarrmask redo \S+ --z 105:140"):
        export(out, tmp_path / "images", scheduler=cluster)
    assert "--z 105:140 --from 120" in describe(out)["run"]
    names = ("volume", "mask", "masked")
    record = redo(out, **arguments)
    assert record["voxels"] == redo(other, **arguments)["voxels"]
    assert contents(out, *names) == contents(other, *names)
    assert len(record["corrections"]) == 2


def test_before_it_writes_a_stopped_correction_makes_way(out, cluster, tmp_path):
    """With what it left: the masks that it had copied."""
    before = contents(out, "mask", "masked")
    masks = painted(tmp_path / "masks", {130: ellipse(130, share=0.4)})
    arguments = {"z": "130:140", "masks": masks, "scheduler": cluster}
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, reporter=Stopping("comparing masks"))
    assert contents(out, "mask", "masked") == before
    assert export(out, tmp_path / "images", z="130:131", scheduler=cluster)["bytes"]
    cv2.imwrite(str(masks / "00130.png"), ellipse(130, share=0.6))
    (correction,) = redo(out, **arguments)["corrections"]
    np.testing.assert_array_equal(level(out, "mask")[35], ellipse(130, share=0.6))
    assert "command" not in correction


def test_what_fails_before_it_writes_leaves_the_run_as_it_was(out, cluster, tmp_path):
    before = json.loads((out / "run.json").read_text())
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(CheckpointError):
        redo(out, z="130:140", checkpoint=tmp_path / "bad.pth", scheduler=cluster)
    assert describe(out)["run"].startswith("finished")
    (out / "run.json").write_text(json.dumps({**before, "voxel_size_um": None}))
    with pytest.raises(SettingsError, match="without a voxel size"):
        redo(out, z="130:140", dilate="80um", scheduler=cluster)
    assert "pending" not in json.loads((out / "run.json").read_text())


def test_while_it_writes_a_correction_keeps_the_masks_that_it_began_with(out, cluster, tmp_path):
    masks = painted(tmp_path / "my masks", {130: ellipse(130, share=0.4)})
    arguments = {"z": "130:140", "masks": masks, "scheduler": cluster}
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, reporter=Stopping("writing from level 2"))
    cv2.imwrite(str(masks / "00130.png"), ellipse(130, share=0.6))
    with pytest.raises(OutputError, match=r"--masks '/.*my masks'"):
        redo(out, z="130:140", erode=1, scheduler=cluster)
    said = Reporter()
    redo(out, **arguments, reporter=said)
    assert any("what was there when it began" in warning for warning in said.warnings)
    np.testing.assert_array_equal(level(out, "mask")[35], ellipse(130, share=0.4))
    assert len(redo(out, **arguments)["corrections"]) == 2
    np.testing.assert_array_equal(level(out, "mask")[35], ellipse(130, share=0.6))


def test_while_it_writes_a_correction_does_without_what_it_took(deep, out, cluster, tmp_path):
    """It is all there: the command that finishes it finishes it, wherever the masks are now."""
    masks = painted(tmp_path / "masks", {130: ellipse(130, share=0.4)})
    arguments = {"z": "130:140", "masks": masks, "scheduler": cluster}
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, reporter=Stopping("writing from level 2"))
    shutil.rmtree(masks)
    with pytest.raises(StackError, match=str(tmp_path / "others")):
        redo(out, **{**arguments, "masks": tmp_path / "others"})
    said = Reporter()
    (correction,) = redo(out, **arguments, reporter=said)["corrections"]
    assert correction["how"]["masks"]["count"] == 1
    assert any("what was there when it began" in warning for warning in said.warnings)
    np.testing.assert_array_equal(level(out, "mask")[35], ellipse(130, share=0.4))


def test_a_stopped_detection_by_weights_that_are_gone_is_finished(
    out, cluster, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for suffix in (".safetensors", ".yaml"):
        shutil.copy(DEFAULT_CHECKPOINT.with_suffix(suffix), f"mine{suffix}")
    arguments = {"z": "130:140", "checkpoint": "mine.safetensors", "scheduler": cluster}
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, reporter=Stopping("writing from level 2"))
    (tmp_path / "mine.safetensors").unlink()
    said = Reporter()
    (correction,) = redo(out, **arguments, reporter=said)["corrections"]
    assert correction["how"]["detect"]["checkpoint"]["path"] == str(tmp_path / "mine.safetensors")
    assert any("what was there when it began" in warning for warning in said.warnings)


def test_a_stopped_correction_by_a_run_that_is_gone_is_finished(deep, out, cluster, tmp_path):
    other = shutil.copytree(out, tmp_path / "other", symlinks=True)
    redo(other, z="100:170", hold=160, scheduler=cluster)
    expected = level(other, "mask")
    arguments = {"z": "130:140", "masks": other, "scheduler": cluster}
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, reporter=Stopping("writing from level 2"))
    with pytest.raises(OutputError, match=r"another correction .*--z 130:140 --masks"):
        redo(out, undo=True, scheduler=cluster)
    shutil.rmtree(other)
    redo(out, **arguments)
    np.testing.assert_array_equal(level(out, "mask")[30:40], expected[30:40])


def test_a_mask_from_before_the_range_is_told_of(out, cluster, tmp_path):
    masks = painted(tmp_path / "painted", {n: ellipse(n, share=0.5) for n in (120, 130)})
    said = Reporter.quiet()
    redo(out, z="125:135", masks=masks, scheduler=cluster, reporter=said)
    (told,) = [one for one in said.warnings if "there is no mask of slice" in one]
    assert told.endswith("125: slices 125 to 129 as the one of slice 120, before them")
    said = Reporter.quiet()
    redo(out, z="130:135", masks=masks, scheduler=cluster, reporter=said)
    assert not said.warnings


def test_corrections_are_undone_one_by_one(deep, masks, out, cluster, tmp_path):
    names = ("volume", "mask", "masked")
    begun = json.loads((out / "run.json").read_text()), contents(out, *names)
    masks = painted(tmp_path / "painted", {n: ellipse(n, share=0.5) for n in range(120, 130)})
    redo(out, z="120:150", masks=masks, scheduler=cluster)
    middle = contents(out, *names)
    redo(out, z="125:160", erode=2, scheduler=cluster)
    assert contents(out, *names) != middle
    with pytest.raises(KeyboardInterrupt):
        redo(out, undo=True, scheduler=cluster, reporter=Stopping("writing from level 2"))
    with pytest.raises(OutputError, match=r"zarrmask redo \S+ --undo"):
        redo(out, z="100:110", hold=120, scheduler=cluster)
    record = redo(out, undo=True, scheduler=cluster)
    assert contents(out, *names) == middle
    assert [one["z"] for one in record["corrections"]] == [[120, 150]]
    record = redo(out, undo=True, scheduler=cluster)
    assert contents(out, *names) == begun[1]
    for name in ("voxels", "settings", "state", "z"):
        assert record[name] == begun[0][name]
    assert "corrections" not in record
    assert not (out / "corrections").exists()
    with pytest.raises(OutputError, match="nothing to undo"):
        redo(out, undo=True, scheduler=cluster)


def test_a_correction_that_another_came_before_is_refused(out, cluster, monkeypatch):
    """Between its look at the record and its lock: it would lose the other's."""

    def meanwhile(*arguments, **options):
        monkeypatch.undo()
        redo(out, z="130:140", hold=120, scheduler=cluster)
        return find_crew(*arguments, **options)

    monkeypatch.setattr("zarrmask.correcting.redo.find_crew", meanwhile)
    with pytest.raises(OutputError, match="just been corrected"):
        redo(out, z="150:160", hold=120, scheduler=cluster)
    record = redo(out, z="150:160", hold=120, scheduler=cluster)
    assert [one["z"] for one in record["corrections"]] == [[130, 140], [150, 160]]


def test_no_run_undoes_a_correction(deep, masks, out, cluster, tmp_path):
    redo(out, z="120:130", erode=1, scheduler=cluster)
    before = contents(out, "mask", "masked")
    again = {"scheduler": cluster, **OPTIONS}
    folder = out.parent / "masks"
    shutil.rmtree(folder, ignore_errors=True)
    painted(folder, masks)
    with pytest.raises(OutputError, match="made with other settings"):
        apply(deep, folder, out, **again)
    with pytest.raises(OutputError, match="no run undoes"):
        apply(deep, folder, out, overwrite=True, **again)
    with pytest.raises(OutputError, match="no run undoes"):
        package.run(deep, out, overwrite=True, scheduler=cluster)
    assert contents(out, "mask", "masked") == before


def test_a_run_with_interpolated_masks(stack, cluster, tmp_path):
    """And without its stack: the volume serves."""
    slices = shutil.copytree(stack, tmp_path / "slices")
    out = tmp_path / "out"
    package.run(slices, out, every=6, chunk=16, scheduler=cluster)
    before, volume = level(out, "mask"), level(out, "volume")
    shutil.rmtree(slices)
    redo(out, z="110:116", hold=104, scheduler=cluster)
    expected = before.copy()
    expected[10:16] = before[4]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    np.testing.assert_array_equal(level(out, "masked"), np.where(expected, volume, 0))
    record = redo(out, z="100:123", dilate=6, scheduler=cluster)
    grown = level(out, "mask")
    assert (grown >= expected).all()
    assert (grown[20] > expected[20]).any()
    redo(out, z="100:110", dilate=3, scheduler=cluster)
    np.testing.assert_array_equal(level(out, "mask")[:10], before[:10])
    assert record["settings"]["dilate"] == 3
    shutil.rmtree(out / "volume.zarr")
    with pytest.raises(OutputError, match="Put the stack back"):
        redo(out, z="100:110", dilate=3)


def test_a_run_in_eight_bits_without_its_stack(deep, masks, cluster, tmp_path):
    """Its window is of grey values that the volume, which serves, does not have any more."""
    slices, out = tmp_path / "slices", tmp_path / "out"
    slices.mkdir()
    for number in NUMBERS[:32]:
        shutil.copy(deep / f"{number:05d}.tif", slices)
    eight = {"dtype": "uint8", "window": (20_000, 45_000), "scheduler": cluster}
    apply(slices, painted(tmp_path / "masks", masks), out, **OPTIONS, **eight)
    before = contents(out, "mask", "masked")
    shutil.rmtree(slices)
    redo(out, z="104:110", dilate=9, scheduler=cluster)
    volume, mask = level(out, "volume"), level(out, "mask")
    np.testing.assert_array_equal(level(out, "masked"), np.where(mask, volume, 0))
    assert contents(out, "mask", "masked") != before
    redo(out, undo=True, scheduler=cluster)
    assert contents(out, "mask", "masked") == before


@pytest.mark.slow  # thousands of files
def test_at_a_url(masked, cluster, mortal_s3, tmp_path):
    s3, _ = mortal_s3
    s3.files.put(str(masked), f"{s3.bucket}/corrected", recursive=True)
    place = s3.place("corrected")
    white = painted(tmp_path / "white", {110: np.full(SHAPE, 255, np.uint8), 112: ellipse(112) * 0})
    redo(place, z="110:114", masks=white, scheduler=cluster)
    expected = level(masked, "mask")
    expected[10:12], expected[12:14] = 255, 0
    np.testing.assert_array_equal(open_source(place / "mask.zarr")[:], expected)
    inside = np.where(expected, level(masked, "volume"), 0)
    np.testing.assert_array_equal(open_source(place / "masked.zarr")[:], inside)


def test_slices_are_detected_on_anew(stack, cluster, tmp_path):
    out, finer = tmp_path / "out", tmp_path / "finer"
    options = {"propagate": "hold", "scheduler": cluster}
    package.run(stack, out, every=12, **options)
    package.run(stack, finer, every=2, **options)
    before, every_second = level(out, "mask"), level(finer, "mask")
    arguments = {"z": "108:116", "detect_every": 2, "checkpoint": DEFAULT_CHECKPOINT}
    with pytest.raises(KeyboardInterrupt):
        redo(out, **arguments, scheduler=cluster, reporter=Stopping("writing"))
    record = redo(out, **arguments, scheduler=cluster)
    expected = before.copy()
    expected[8:16] = every_second[8:16]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    assert not np.array_equal(before, expected)
    how = record["corrections"][0]["how"]["detect"]
    assert (how["detect-every"], len(how["checkpoint"]["sha256"])) == (2, 64)
    assert record["corrections"][0]["detected"]["count"] == 4
    record = redo(out, z="112:114", score=1.0, scheduler=cluster)
    assert not level(out, "mask")[12:14].any()
    assert record["corrections"][1]["detected"]["without_detection"] == [112]
    report = (out / "report.html").read_text()
    assert "nothing was found on z 112 when that was detected anew" in report
    np.testing.assert_array_equal(level(out, "mask")[14:], expected[14:])


def test_given_masks_give_way_to_a_detector_that_is_asked(out, cluster):
    """By the bundled weights, since there were none; noise is no scroll."""
    said, before = Reporter.quiet(), level(out, "mask")
    record = redo(out, z="120:124", detect_every=2, scheduler=cluster, reporter=said)
    assert "given for slices 120 to 123 give way to what the detector finds" in said.warnings[0]
    assert record["corrections"][0]["detected"]["without_detection"] == [120, 122]
    before[20:24] = 0
    np.testing.assert_array_equal(level(out, "mask"), before)


def test_mirror_images_are_looked_at_as_a_run_that_does_so_would(stack, cluster, tmp_path):
    out, surer = tmp_path / "out", tmp_path / "surer"
    options = {"propagate": "hold", "every": 12, "scheduler": cluster}
    package.run(stack, out, **options)
    record = package.run(stack, surer, mirrored=True, **options)
    assert record["identity"]["settings"]["mirrored"] is True
    before, expected = level(out, "mask"), level(surer, "mask")
    assert not np.array_equal(before, expected)
    assert (before != expected).mean() < 0.02
    record = redo(out, z=":", mirrored=True, scheduler=cluster)
    np.testing.assert_array_equal(level(out, "mask"), expected)
    assert record["corrections"][0]["how"] == {"detect": {"mirrored": True}}
    correction = open_run(out).corrections[0]
    assert correction.arguments == ["--z", "100:123", "--mirrored"]
    once = replace(correction, how={"detect": {"mirrored": False}})
    assert once.arguments == ["--z", "100:123", "--no-mirrored"]
    assert ": mirrored<" in (out / "report.html").read_text()


@pytest.mark.slow
def test_interpolated_masks_are_detected_on_anew_painted_and_shrunk(stack, cluster, tmp_path):
    """The default way: what a correction gives a range is as a run by that would have it."""
    out, finer = tmp_path / "out", tmp_path / "finer"
    package.run(stack, out, every=12, scheduler=cluster)
    package.run(stack, finer, every=2, scheduler=cluster)
    before, every_second = level(out, "mask"), level(finer, "mask")
    redo(out, z="108:117", detect_every=2, scheduler=cluster)
    expected = before.copy()
    expected[8:17] = every_second[8:17]
    np.testing.assert_array_equal(level(out, "mask"), expected)
    assert not np.array_equal(before, expected)
    redo(out, z="110:112", erode="4", scheduler=cluster)
    eroded = level(out, "mask")
    assert 0 < (eroded[10:12] > 0).sum() < (expected[10:12] > 0).sum()
    assert not (eroded & ~expected).any()
    by_hand = np.zeros((150, 170), np.uint8)
    by_hand[40:90, 50:120] = 255
    masks = painted(tmp_path / "painted", {103: by_hand, 104: by_hand[::-1]})
    redo(out, z="103:105", masks=masks, scheduler=cluster)
    eroded[3:5] = by_hand, by_hand[::-1]
    np.testing.assert_array_equal(level(out, "mask"), eroded)


def test_given_masks_count_as_memory(out, cluster, tmp_path):
    numbers = np.arange(132, 150)  # of the layer of 132 to 163
    assert held_at_once(open_run(out), (130, 150), numbers) == 18 + 1
    dense = painted(tmp_path / "dense", {number: ellipse(number) for number in range(132, 136)})
    redo(out, z="132:136", masks=dense, scheduler=cluster)
    there = open_run(out)
    assert held_at_once(there, (140, 150), numbers) == 18 + 1 + 2 * (4 + 1)
    assert held_at_once(there, (100, 110), numbers) == 18 + 1


def test_what_cannot_be_corrected(out, tmp_path):
    with pytest.raises(SettingsError, match="one of --from"):
        redo(out, z="120:130")
    with pytest.raises(SettingsError, match=r"2 things .*\(from, dilate\); .*one of --from"):
        redo(out, z="120:130", hold=100, dilate=3)
    with pytest.raises(SettingsError, match="--z A:B"):
        redo(out, hold=100)
    with pytest.raises(SettingsError, match="--first goes with"):
        redo(out, z="120:130", hold=100, first=100)
    with pytest.raises(SettingsError, match="leave --z out"):
        redo(out, z="120:130", undo=True)
    with pytest.raises(SettingsError, match="100 to 169"):
        redo(out, z="90:130", hold=100)
    with pytest.raises(SettingsError, match=r"--from 170:171 .*100 to 169"):
        redo(out, z="120:130", hold=170)
    late = painted(tmp_path / "late", {130: ellipse(130)})
    with pytest.raises(StackError, match=r"slice 130, .*slices 120 to 129 have none"):
        redo(out, z="120:130", masks=late)
    with pytest.raises(OutputError, match="no finished run"):
        redo(tmp_path, z="1:2", hold=1)
    record = json.loads((out / "run.json").read_text())
    assert record["state"] == "finished"
    record["checkpoint"] = {"path": "model.pth", "sha256": "of others"}
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match=r"weights in \S+ have changed"):
        redo(out, z="120:130", detect_every=2)


def test_the_command(out, cluster, zarrmask, tmp_path):
    labels = np.array([ellipse(n, share=0.3) for n in range(120, 130)]).astype(np.int32)
    zarr.save(tmp_path / "labels.zarr", labels)
    options = ["--z", "120:130", "--masks", "labels.zarr", "--scheduler", cluster]
    code, printed, _ = zarrmask("redo", out, *options)
    assert (code, "slices 120 to 129" in printed) == (0, True)
    np.testing.assert_array_equal(level(out, "mask")[20:30] > 0, labels > 0)
    code, printed, told = zarrmask("redo", out, *options)
    assert (code, "this one comes on top of it" in told) == (0, True)
    assert "nothing: the masks were so already" in printed
    assert zarrmask("info", out)[1].count("--z 120:130 --masks") == 2
    zarrmask("redo", out, "--undo", "--scheduler", cluster)
    code, printed, told = zarrmask("redo", out, "--undo", "--scheduler", cluster)
    assert (code, "corrections left: 0" in printed) == (0, True)
    assert "taking back: --z 120:130 --masks" in told
    code, _, told = zarrmask("redo", out, "--z", "120:130")
    assert (code, "--from" in told) == (1, True)


@given_by(
    layers=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(0, 2)), max_size=4),
    start=st.integers(0, 8),
)
def test_layers_lie_over_each_other(tmp_path_factory, layers, start):
    store = KeyframeStore(tmp_path_factory.mktemp("store"))
    store.reserve(3, 6, 40)
    for place in range(3):
        mask = np.zeros((6, 40), np.uint8)
        mask[place : place + 3, 10 * place : 10 * place + 20] = 255
        store.write_mask(place, mask)

    def constant(place):
        return HeldMasks(store, np.array([0]), np.array([place]), np.array([1]), (6, 40), 0)

    masks = LayeredMasks((Layer(0, 10, constant(0)),))
    expected = np.repeat(store.masks()[:][:1], 10, axis=0)
    for first, length, place in layers:
        stop = min(10, first + length)
        masks = masks.covered(Layer(first, stop, constant(place)))
        expected[first:stop] = store.masks()[place]
    region = masks.region(slice(start, 10), slice(1, 6), slice(0, 40)).part(
        slice(0, 10 - start), slice(1, 4)
    )
    wanted = expected[start:10, 2:5]
    found = np.full(wanted.shape, 7, np.uint8)
    region.fill(found, slice(0, 40))
    np.testing.assert_array_equal(found, wanted)
    reached = np.zeros(40, bool)
    for columns, full in region.columns(10, 20):
        reached[columns] = True
        assert not full or wanted[:, :, columns].all()
    assert not wanted[:, :, ~reached].any()


@given_by(place=st.tuples(st.integers(0, 4), st.integers(0, 4)), depth=st.integers(1, 300))
def test_touched_bricks_are_those_that_share_voxels(place, depth):
    fine, coarse = step_grid((depth, 300, 90), (32, 32, 64)), None
    z, y = place[0] % fine.counts[0], place[1] % fine.counts[1]
    region = fine.region((z, y, 0))
    coarse = step_grid((-(-depth // 4), 75, 23), (32, 32, 64))
    marked = np.zeros(coarse.shape, bool)
    marked[tuple(slice(part.start // 4, -(-part.stop // 4)) for part in region)] = True
    expected = [index for index in coarse.indices() if marked[coarse.region(index)].any()]
    assert touched([region], 4, coarse) == expected
