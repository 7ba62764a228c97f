"""Whole runs on a real cluster of processes."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import dask.array as da
import numpy as np
import psutil
import pytest
import tifffile
import xarray as xr
import zarr
from distributed import Client

import zarrmask
from zarrmask.errors import CheckpointError, OutputError, SettingsError, StackError, ZarrmaskError
from zarrmask.masking.field import UNITS, parts_apart, signed_distance
from zarrmask.phantom import Phantom
from zarrmask.progress import Reporter
from zarrmask.pyramid import write_metadata
from zarrmask.stack import open_source
from zarrmask.workers.blocks import results

OUTPUTS = {
    "keyframes.zarr",
    "mask.zarr",
    "masked.zarr",
    "overview.png",
    "report.html",
    "run.json",
    "scroll.khprj",
    "volume.zarr",
}


def level(out, name, n=0):
    return zarr.open_array(out / f"{name}.zarr" / str(n), mode="r")[:]


def keyframes(out):
    group = zarr.open_group(out / "keyframes.zarr", mode="r")
    return {name: array[:] for name, array in group.arrays()}


def contents(folder):
    """Every file under a folder and its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def run(cluster, stack, tmp_path_factory):
    """A finished run: its folder and its record."""
    out = tmp_path_factory.mktemp("run") / "out"
    return out, zarrmask.run(stack, out, every=7, dilate=5, voxel_size=7.91, scheduler=cluster)


def test_a_run_leaves_all_its_outputs(run):
    out, _ = run
    assert {path.name for path in out.iterdir()} == OUTPUTS


def test_the_volume_is_the_stack(run, stack):
    out, _ = run
    slices = [tifffile.imread(path) for path in sorted(stack.glob("*.tif"))]
    np.testing.assert_array_equal(level(out, "volume"), np.array(slices))


def test_masks_are_interpolated_between_keyframes_and_grown(run):
    out, _ = run
    found, mask = keyframes(out), level(out, "mask") > 0
    inside = [plane > 0 for plane in found["mask"]]
    measured = [signed_distance(plane) for plane in inside]
    fields = [field.astype(float) for field in measured]
    seen = (found["z"] - 100).tolist()
    assert seen == [0, 7, 14, 21, 22]
    for z in range(23):
        one = int(np.searchsorted(seen, z, "right")) - 1
        field = fields[one]
        if z > seen[one]:
            place = (z - seen[one]) / (seen[one + 1] - seen[one])
            field = field * (1 - place) + fields[one + 1] * place
            apart = parts_apart(*inside[one : one + 2], measured[one : one + 2])
            field = np.maximum(field, signed_distance(apart)) if apart.any() else field
        sure = abs(field / UNITS + 4) > 0.1  # it grows by half of int(170 * 5 / 100)
        np.testing.assert_array_equal(mask[z][sure], (field / UNITS > -4)[sure])
    assert mask.any()


def test_held_masks_are_the_replaced_scripts_for_the_same_detections(stack, cluster, tmp_path):
    options = {"propagate": "hold", "every": 7, "dilate": 5, "scheduler": cluster}
    out = tmp_path / "out"
    zarrmask.run(stack, out, **options)
    found = keyframes(out)
    assert found["z"].tolist() == [100, 107, 114, 121]
    kernel = np.ones((8, 8), np.uint8)  # int(170 * 5 / 100)
    expected, held = [], None
    for count in range(23):
        if count % 7 == 0:
            held = cv2.dilate(found["mask"][count // 7], kernel, iterations=1)
        expected.append(held)
    np.testing.assert_array_equal(level(out, "mask"), np.array(expected))
    assert level(out, "mask").any()


def test_masked_is_the_volume_inside_the_mask_and_0_outside(run):
    out, record = run
    volume, mask, masked = (level(out, name) for name in ("volume", "mask", "masked"))
    np.testing.assert_array_equal(masked, np.where(mask == 255, volume, 0))
    assert record["voxels"] == {
        "total": mask.size,
        "kept": int((mask > 0).sum()),
        "removed": int((mask == 0).sum()),
    }


def test_the_record_says_what_was_done(run):
    out, record = run
    assert json.loads((out / "run.json").read_text()) == json.loads(json.dumps(record))
    assert record["zarrmask"] == zarrmask.__version__
    assert record["state"] == "finished"
    assert record["z"] == [100, 123]
    assert record["settings"]["every"] == 7
    assert len(record["checkpoint"]["sha256"]) == 64
    assert record["peak_memory_bytes"] > 0
    assert {"detecting", "writing"} <= {stage["name"] for stage in record["stages"]}
    assert record["versions"]["zarr"] == zarr.__version__


def test_what_was_found_is_kept_with_z_and_scores(run):
    out, _ = run
    found = keyframes(out)
    for n in range(4):
        scores = found["scores"][n][: found["count"][n]]
        assert (np.diff(scores) <= 0).all()
        assert (scores > 0.1).all()
        assert found["area"][n] == np.count_nonzero(found["mask"][n])


def test_a_finished_run_is_left_as_it_is(run, stack, cluster):
    out, record = run
    before = contents(out)
    options = {"every": 7, "dilate": 5, "voxel_size": 7.91, "scheduler": cluster}
    assert zarrmask.run(stack, out, **options)["identity"] == record["identity"]
    assert contents(out) == before


def test_a_finished_run_that_lost_a_file_says_so(run, stack, cluster, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run[0], out, symlinks=True)
    shutil.rmtree(out / "mask.zarr")
    with pytest.raises(OutputError, match=r"mask\.zarr\S* is gone"):
        zarrmask.run(stack, out, every=7, dilate=5, voxel_size=7.91, scheduler=cluster)


def test_keyframes_are_read_by_xarray(run):
    found = xr.open_zarr(run[0] / "keyframes.zarr", consolidated=False)
    assert found["mask"].dims == ("z", "y", "x")
    assert float(found["best_score"].sel(z=107)) > 0.1


def test_a_script_without_its_guard_is_told_so(stack, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import zarrmask\nzarrmask.run({str(stack)!r}, {str(tmp_path / 'out')!r})\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert 'below `if __name__ == "__main__":`' in done.stderr


def test_other_settings_are_refused_by_name(run, stack):
    out, _ = run
    before = contents(out)
    with pytest.raises(OutputError, match=r"--every: 7 then, auto now"):
        zarrmask.run(stack, out, dilate=5, voxel_size=7.91)
    assert contents(out) == before


def test_settings_that_came_later_leave_an_identity_as_it_was(run, stack):
    out, record = run
    assert record["settings"]["threads"] == record["settings"]["batch"] == 1
    assert record["settings"]["mirrored"] is False
    assert not {"threads", "batch", "mirrored"} & record["identity"]["settings"].keys()
    options = {"every": 7, "dilate": 5, "voxel_size": 7.91}
    with pytest.raises(OutputError, match=r"--threads: not given then, 2 now"):
        zarrmask.run(stack, out, threads=2, **options)


def test_the_device_that_a_run_began_on_is_part_of_its_identity(run, stack, cluster, tmp_path):
    out, record = run
    device = record["identity"]["device"]
    assert device in ("cpu", "cuda", "mps")
    options = {"every": 7, "dilate": 5, "voxel_size": 7.91, "scheduler": cluster}
    other = "cuda" if device == "cpu" else "cpu"
    with pytest.raises(OutputError, match=f"device: {device} then, {other} now"):
        zarrmask.run(stack, out, device=other, **options)
    assert zarrmask.run(stack, out, device=device, **options)["identity"] == record["identity"]

    older = tmp_path / "out"
    shutil.copytree(out, older, symlinks=True)
    before = {**record, "identity": {**record["identity"]}}
    del before["identity"]["device"]
    (older / "run.json").write_text(json.dumps(before))
    assert zarrmask.run(stack, older, device=other, **options)["identity"] == before["identity"]


def test_changed_input_is_refused(run, stack, tmp_path):
    out, _ = run
    other = tmp_path / "other"
    shutil.copytree(stack, other)
    tifffile.imwrite(other / "00100.tif", tifffile.imread(other / "00100.tif")[::-1].copy())
    with pytest.raises(OutputError, match=r"input: .*files have changed"):
        zarrmask.run(other, out, every=7, dilate=5, voxel_size=7.91)


def test_overwriting_keeps_what_a_person_drew(run, stack, cluster, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run[0], out, symlinks=True)
    drawing = out / "scroll.khprj" / "fragments" / "mine.json"
    drawing.write_text("{}")
    (out / "notes.txt").write_text("mine")
    (out / "masked.zarr/labels/wraps").mkdir()
    (out / "masked.zarr/labels/wraps/.zgroup").write_text('{"zarr_format": 2}')
    zarrmask.run(stack, out, every=12, volume=False, overwrite=True, scheduler=cluster)
    assert drawing.read_text() == "{}"
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "masked.zarr/labels/wraps/.zgroup").is_file()
    assert not (out / "volume.zarr").exists()
    assert keyframes(out)["z"].tolist() == [100, 112, 122]


def test_an_output_never_replaces_its_own_input(run, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(run[0], out, symlinks=True)
    (tmp_path / "link").symlink_to(out / "volume.zarr")
    before = contents(out)
    for stack in (out / "volume.zarr", tmp_path / "link", out / "volume.zarr/0"):
        with pytest.raises(OutputError, match="would overwrite what is read"):
            zarrmask.run(stack, out, overwrite=True)
        with pytest.raises(OutputError, match="would overwrite what is read"):
            zarrmask.convert(stack, out / "volume.zarr", overwrite=True)
        with pytest.raises(OutputError, match="would overwrite what is read"):
            zarrmask.convert(stack, out / "volume.zarr/0/inside.zarr")
    label = out / "masked.zarr/labels/mask"
    with pytest.raises(OutputError, match="would overwrite what is read"):
        zarrmask.convert(label, out / "mask.zarr", overwrite=True)
    assert contents(out) == before


def test_a_foreign_record_is_no_leave_to_overwrite(stack, tmp_path):
    (tmp_path / "run.json").write_text('{"version": "2", "state": "finished"}')
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(OutputError, match="not made by zarrmask"):
        zarrmask.run(stack, tmp_path, overwrite=True)
    assert (tmp_path / "report.html").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_another_maker_is_never_replaced(stack, tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not made by zarrmask"):
        zarrmask.run(stack, tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_range_of_slice_numbers_is_cut_out(stack, cluster, tmp_path):
    out = tmp_path / "out"
    zarrmask.run(stack, out, z="105:112", every=4, scheduler=cluster)
    assert keyframes(out)["z"].tolist() == [105, 109, 111]
    assert level(out, "volume").shape == (7, 150, 170)
    first = tifffile.imread(stack / "00105.tif")
    np.testing.assert_array_equal(level(out, "volume")[0], first)


@pytest.mark.parametrize("z", ["0:10", "90:110", "110:200"])
def test_a_range_outside_of_the_stack_is_refused(stack, tmp_path, z):
    with pytest.raises(SettingsError, match="100"):
        zarrmask.run(stack, tmp_path / "out", z=z)
    assert not (tmp_path / "out").exists()


def test_one_jpeg_slice_is_a_stack(stack, cluster, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    image = tifffile.imread(stack / "00110.tif")
    cv2.imwrite(str(folder / "7.jpg"), (image >> 8).astype(np.uint8))
    record = zarrmask.run(folder, tmp_path / "out", scheduler=cluster)
    assert record["z"] == [7, 8]
    assert level(tmp_path / "out", "mask").shape == (1, 150, 170)


def test_a_dark_stack_is_advised_and_auto_finds_the_same(stack, cluster, tmp_path):
    folder = tmp_path / "dark"
    folder.mkdir()
    for path in sorted(stack.glob("*.tif"))[:8]:
        tifffile.imwrite(folder / path.name, tifffile.imread(path) >> 4)
    reporter = Reporter()
    zarrmask.run(folder, tmp_path / "seed", scheduler=cluster, reporter=reporter)
    assert any("--detect-window auto" in warning for warning in reporter.warnings)
    zarrmask.run(folder, tmp_path / "auto", detect_window="auto", scheduler=cluster)
    assert keyframes(tmp_path / "auto")["count"].all()


def test_missing_slices_are_zeros_that_count_for_nothing(stack, cluster, tmp_path):
    folder = tmp_path / "gap"
    shutil.copytree(stack, folder)
    (folder / "00103.tif").unlink()
    with pytest.raises(StackError, match="103"):
        zarrmask.run(folder, tmp_path / "out")
    record = zarrmask.run(
        folder, tmp_path / "out", every=3, z="100:110", allow_missing=True, scheduler=cluster
    )
    assert keyframes(tmp_path / "out")["z"].tolist() == [100, 104, 107, 109]
    assert not level(tmp_path / "out", "volume")[3].any()
    assert record["input"]["missing"] == [103]


def test_slices_without_the_object_are_warned_of(cluster, tmp_path):
    folder = tmp_path / "air"
    folder.mkdir()
    for n in range(3):
        tifffile.imwrite(folder / f"{n}.tif", np.full((90, 100), 9000, np.uint16))
    record = zarrmask.run(folder, tmp_path / "out", every=2, scheduler=cluster)
    assert record["keyframes"]["without_detection"] == [0, 2]
    assert any("nothing was found on any of 2" in warning for warning in record["warnings"])
    assert record["voxels"]["kept"] == 0


def test_an_object_that_is_shorter_than_the_first_interval_is_found(cluster, tmp_path):
    folder = tmp_path / "short"
    folder.mkdir()
    phantom = Phantom((80, 120, 140), seed=3)
    image = phantom.slice(40)[0]
    empty = np.full_like(image, np.percentile(image, 1))
    for n in range(50):
        tifffile.imwrite(folder / f"{n}.tif", image if 12 <= n < 44 else empty)
    record = zarrmask.run(folder, tmp_path / "out", scheduler=cluster)
    assert record["keyframes"]["count"] > 2
    inside = level(tmp_path / "out", "mask").any(axis=(1, 2))
    assert inside[12:44].all()
    assert not inside[[0, 49]].any()


def test_a_checkpoint_that_is_none_leaves_nothing_behind(stack, cluster, tmp_path):
    (tmp_path / "model.pth").write_text("not weights")
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        zarrmask.run(stack, tmp_path / "out", checkpoint=tmp_path / "model.pth", scheduler=cluster)
    assert not (tmp_path / "out").exists()


def test_convert_writes_the_stack_alone(stack, cluster, tmp_path):
    out = zarrmask.convert(stack, tmp_path / "stack.zarr", voxel_size=3.24, scheduler=cluster)
    np.testing.assert_array_equal(
        zarr.open_array(out / "0", mode="r")[0], tifffile.imread(stack / "00100.tif")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["stack.zarr"]
    before = contents(out)
    zarrmask.convert(stack, out, voxel_size=3.24)
    assert contents(out) == before
    with pytest.raises(OutputError, match=r"voxel-size: 3\.24 then, not given now"):
        zarrmask.convert(stack, out)
    assert zarrmask.open_pyramid(out)["0/image"].shape == (23, 150, 170)


def test_a_conversion_takes_no_settings_of_a_run(stack, tmp_path):
    with pytest.raises(SettingsError, match="a conversion has no settings every, score; leave"):
        zarrmask.convert(stack, tmp_path / "a.zarr", score=0.3, every=5, chunk=32, dtype=None)
    with pytest.raises(SettingsError, match="a conversion has no settings config, gpus; leave"):
        zarrmask.foresee(stack, tmp_path / "a.zarr", conversion=True, gpus=True, config="a.yaml")


@pytest.mark.parametrize("rows", [None, 16], ids=["one-strip", "strips"])
def test_compressed_slices_wider_than_a_tile(cluster, tmp_path, rows):
    folder = tmp_path / "lzw"
    folder.mkdir()
    slices = np.random.default_rng(0).integers(0, 900, (5, 70, 1300), np.uint16)
    for z, image in enumerate(slices):
        tifffile.imwrite(folder / f"{z}.tif", image, compression="lzw", rowsperstrip=rows)
    out = zarrmask.convert(folder, tmp_path / "out.zarr", scheduler=cluster)
    np.testing.assert_array_equal(zarr.open_array(out / "0", mode="r")[:], slices)


def test_a_stack_of_its_own_making_is_read_back(run, cluster, tmp_path):
    out, _ = run
    zarrmask.convert(out / "masked.zarr", tmp_path / "again.zarr", scheduler=cluster)
    again = zarr.open_array(tmp_path / "again.zarr/0", mode="r")[:]
    np.testing.assert_array_equal(again, level(out, "masked"))


# Runs as processes of their own, stopped from outside.


@pytest.fixture(scope="module")
def large_stack(tmp_path_factory):
    """Twenty slices of three bricks and four levels."""
    folder = tmp_path_factory.mktemp("large")
    phantom = Phantom((60, 600, 300), seed=5)
    for n in range(20):
        tifffile.imwrite(folder / f"{n}.tif", phantom.slice(20 + n)[0])
    return folder


def start(stack, out, *options, command="run"):
    arguments = [sys.executable, "-m", "zarrmask", command, stack, out, "--workers", "1", *options]
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(folder, pattern, process, seconds=120):
    """Wait for a file of a running process."""
    end = time.monotonic() + seconds
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)


def kill_all(process):
    os.killpg(process.pid, signal.SIGKILL)


def kill_client(process):
    process.kill()


def workers_of(process):
    """Processes that work: forked from one that has imported what they need."""
    children = psutil.Process(process.pid).children(recursive=True)
    forking = {child.pid for child in children if "forkserver" in " ".join(child.cmdline())}
    workers = [child for child in children if child.ppid() in forking]
    assert workers
    return workers


def kill_workers(process):
    for worker in workers_of(process):
        worker.kill()


def tell(process, number):
    """Send a signal while workers stand still: they shall not be done before it is heard."""
    workers = workers_of(process)
    for worker in workers:
        worker.suspend()
    process.send_signal(number)
    time.sleep(0.2)
    for worker in workers:
        worker.resume()


def terminate(process):
    tell(process, signal.SIGTERM)


def interrupt(process):
    tell(process, signal.SIGINT)


STOPS = [
    (terminate, ".zarrmask/finished/detecting/2.json"),
    (kill_client, "volume.zarr/0/.zarray"),
    (interrupt, ".zarrmask/finished/writing/level-0/*/*.json"),
    (kill_all, ".zarrmask/finished/writing/level-2-volume/*/*.json"),
    (kill_all, "overview.png"),
]


def test_a_run_stopped_again_and_again_ends_as_one_that_was_not(large_stack, cluster, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    zarrmask.run(large_stack, whole, every=7, scheduler=cluster)
    written = {}
    for stop, moment in STOPS:
        process = start(large_stack, again, "--every", "7")
        try:
            wait_for(again, moment, process)
            stop(process)
            message = process.communicate(timeout=60)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                kill_all(process)
        assert process.returncode != 0
        assert "Traceback" not in message
        assert json.loads((again / "run.json").read_text())["state"] == "unfinished"
        for entry, when in written.items():
            assert entry.stat().st_mtime_ns == when  # what is finished is not done again
        written = {p: p.stat().st_mtime_ns for p in again.glob(".zarrmask/finished/**/*.json")}

    for gone in ("volume.zarr/1", "keyframes.zarr", ".zarrmask/scratch/mask.zarr"):
        shutil.rmtree(again / gone)  # by hand: the ledger must not be believed

    other = start(large_stack, again, "--every", "9")
    assert "--every: 7 then, 9 now" in other.communicate(timeout=120)[1]
    assert other.returncode == 1

    record = zarrmask.run(large_stack, again, every=7, scheduler=cluster)
    assert record["resumed"]
    assert {path.name for path in again.iterdir()} == OUTPUTS
    for name in ("volume", "mask", "masked"):
        assert contents(again / f"{name}.zarr") == contents(whole / f"{name}.zarr")
    assert contents(again / "keyframes.zarr") == contents(whole / "keyframes.zarr")


@pytest.mark.slow
def test_a_worker_lost_while_it_loads_is_waited_for(large_stack, tmp_path):
    process = start(large_stack, tmp_path / "out", "--every", "10")
    lines = iter(process.stderr.readline, "")
    assert any(line.startswith("dashboard") for line in lines)
    kill_workers(process)
    message = process.communicate(timeout=200)[1]
    assert process.returncode == 0, message


def test_a_conversion_through_a_link(large_stack, cluster, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link.zarr").symlink_to(tmp_path / "disk" / "real.zarr")
    for overwrite in (False, True):
        options = {"scheduler": cluster, "overwrite": overwrite}
        out = zarrmask.convert(large_stack, tmp_path / "link.zarr", **options)
        assert out == tmp_path / "disk" / "real.zarr"
    assert (tmp_path / "link.zarr").is_symlink()
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"real.zarr"}


def test_a_stopped_conversion_goes_on(large_stack, cluster, tmp_path):
    whole, again = tmp_path / "whole.zarr", tmp_path / "again.zarr"
    zarrmask.convert(large_stack, whole, scheduler=cluster)
    for moment in ("again.zarr/.zattrs", ".again.zarr.zarrmask/finished/writing/level-0/*/*.json"):
        process = start(large_stack, again, command="convert")
        try:
            wait_for(tmp_path, moment, process)
        finally:
            kill_all(process)
            process.communicate(timeout=60)
        with pytest.raises(ZarrmaskError, match="not an OME-Zarr image"):
            zarrmask.open_pyramid(again)
    with pytest.raises(OutputError, match="--voxel-size"):
        zarrmask.convert(large_stack, again, voxel_size=3)
    zarrmask.convert(large_stack, again, scheduler=cluster)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.zarr", "again.zarr"}
    again_, whole_ = contents(again), contents(whole)
    names = [json.loads(c.pop(".zattrs"))["multiscales"][0].pop("name") for c in (again_, whole_)]
    assert names == ["again", "whole"]
    assert again_ == whole_


@pytest.mark.parametrize("what", ["convert", pytest.param("run", marks=pytest.mark.slow)])
def test_a_run_goes_on_when_a_full_disk_has_room_again(large_stack, cluster, tmp_path, what):
    small, whole = tmp_path / "small-disk", tmp_path / "whole.zarr"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root mounts a small disk")
    out, options = small / "whole.zarr", ["--every", "7"] if what == "run" else []
    try:
        process = start(large_stack, out, *options, command=what)
        message = process.communicate(timeout=120)[1]
        assert process.returncode == 1
        assert "no space left on the output's disk" in message
        assert "Traceback" not in message
        subprocess.run(["mount", "-o", "remount,size=80m", small], check=True)
        process = start(large_stack, out, *options, command=what)
        message = process.communicate(timeout=120)[1]
        assert process.returncode == 0, message
        if what == "run":
            zarrmask.run(large_stack, whole, every=7, scheduler=cluster)
            for name in ("volume.zarr", "mask.zarr", "masked.zarr"):
                assert contents(out / name) == contents(whole / name)
        else:
            zarrmask.convert(large_stack, whole, scheduler=cluster)
            assert contents(out) == contents(whole)
        assert not list(small.rglob("*.partial"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.7])
def test_ctrl_c_while_workers_begin_is_no_traceback(stack, tmp_path, seconds):
    """It goes to all processes of a terminal."""
    process = start(stack, tmp_path / "out")
    assert "TIFF slices" in process.stderr.readline()
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130
    assert told.endswith("\nstopped; the same command goes on from what is kept, if anything is\n")
    assert "Traceback" not in told


def test_a_stack_that_lies_elsewhere_now_is_another(cluster, tmp_path):
    stack, out = tmp_path / "stack.zarr", tmp_path / "out.zarr"
    group = zarr.open_group(stack, mode="w", zarr_format=2)
    group.create_array("0", data=np.zeros((4, 16, 16), np.uint16), chunks=(4, 16, 16))
    for origin in ((0.0, 0.0, 0.0), (5.0, 6.0, 7.0)):
        write_metadata(stack, "volume", 1, voxel_size=2.0, origin=origin)
        zarrmask.convert(stack, out, overwrite=any(origin), scheduler=cluster)
        assert open_source(out).offset == origin
        zarrmask.convert(stack, out, scheduler=cluster)
    write_metadata(stack, "volume", 1, voxel_size=2.0, origin=(5.0, 6.0, 8.0))
    with pytest.raises(OutputError, match=r"offset: .*7.* then, .*8.* now"):
        zarrmask.convert(stack, out, scheduler=cluster)


def test_what_is_finished_needs_no_cluster(stack, cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zarrmask.workers.cluster.TIMEOUT", "3s")
    gone = "tcp://127.0.0.1:9"
    options = {"every": 7, "dilate": 5}
    zarrmask.run(stack, tmp_path / "out", **options, scheduler=cluster)
    again = zarrmask.run(stack, tmp_path / "out", **options, scheduler=gone)
    assert again["state"] == "finished"
    zarrmask.convert(stack, tmp_path / "out.zarr", scheduler=cluster)
    zarrmask.convert(stack, tmp_path / "out.zarr", scheduler=gone)
    assert capsys.readouterr().err.count("is finished already") == 2
    with pytest.raises(ZarrmaskError, match="no Dask scheduler answers"):
        zarrmask.run(stack, tmp_path / "other", **options, scheduler=gone)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_is_named_as_such(cluster, number):
    def write(block):
        raise OSError(number, os.strerror(number), "/out/volume.zarr/0/0/0/0")

    with Client(cluster) as client, pytest.raises(ZarrmaskError, match=r"no space left.*/0/0/0/0"):
        results(client, [da.zeros(2, chunks=1).map_blocks(write, dtype=float)], lambda n: None)


@pytest.mark.parametrize(
    "error",
    [PermissionError(errno.EACCES, "Permission denied"), RuntimeError("no (os error 13)")],
)
def test_what_the_system_refuses_a_worker_is_no_bug(cluster, error):
    def write(block):
        raise error

    again = "run the same command again"
    with Client(cluster) as client, pytest.raises(ZarrmaskError, match=again):
        results(client, [da.zeros(2, chunks=1).map_blocks(write, dtype=float)], lambda n: None)


@pytest.mark.slow
def test_a_worker_lost_with_its_detector_is_made_good(large_stack, tmp_path):
    process = start(large_stack, tmp_path / "out", "--every", "2")
    wait_for(tmp_path, "out/.zarrmask/finished/detecting/*.json", process)
    kill_workers(process)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 0, message
    assert "a worker was lost with its detector" in message
    assert len(keyframes(tmp_path / "out")["z"]) == 11


def test_two_runs_on_one_output_do_not_mix(stack, tmp_path):
    first = start(stack, tmp_path / "out")
    try:
        wait_for(tmp_path, "out/.zarrmask/lock", first)
        with pytest.raises(OutputError, match="in use"):
            zarrmask.run(stack, tmp_path / "out")
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate(timeout=60)
