"""What is foreseen: counted by brute force, and by what real conversions and runs leave."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise, product
from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

import zarrmask
from zarrmask.detection.inputs import NetworkInput
from zarrmask.errors import RoomError, SettingsError
from zarrmask.masking.keyframe_store import ROWS_A_CHUNK
from zarrmask.phantom import Phantom
from zarrmask.planning.forecast import Forecast, Network, covered
from zarrmask.planning.plan import make_plan
from zarrmask.planning.room import check_room, free_space, want_of_memory
from zarrmask.progress import Reporter
from zarrmask.pyramid import brick_grid
from zarrmask.records.journal import Journal
from zarrmask.running.outputs import converted_pyramids, run_pyramids
from zarrmask.running.pipeline import foresee
from zarrmask.running.session import writes_meanwhile
from zarrmask.settings import read_settings
from zarrmask.stack.header import Header
from zarrmask.stack.slices import SliceSource
from zarrmask.stack.tiff import read_tiff
from zarrmask.workers.crew import Crew, CrewRequest, find_crew
from zarrmask.workers.processes import shared_imports

GB = 10**9


def stack_of(shape, block=None, dtype=np.uint16):
    """A stack of slices that are nowhere."""
    rows, columns = block or (1, shape[2])
    header = Header(shape[1:], np.dtype(dtype), (rows, columns), 8, 512 if rows == 1 else -1, False)
    names = [f"{z:05d}.tif" for z in range(shape[0])]
    return SliceSource("/scroll", "TIFF slices", read_tiff, 0, names, [header] * shape[0])


def forecast_of(source, tmp_path, crew=None, masked=True, **options):
    options = read_settings(**options)
    plan = make_plan(source, options)
    if masked:
        pyramids = run_pyramids(Journal.of_run(tmp_path), plan, source, options, referenced=False)
    else:
        pyramids = converted_pyramids(Journal.of_conversion(tmp_path), plan, source, options)
    crew = crew or Crew(2, 1, 64 * GB)
    network = Network(10**7, NetworkInput(320, 576)) if masked else None
    return Forecast(source, plan, pyramids, crew, network).fitted()


SCROLL = (27_000, 8_096, 8_096)
SIDES = st.integers(1, 700)


@given(st.lists(st.integers(1, 60), max_size=9), st.integers(1, 50))
def test_what_is_covered_is_every_block_that_a_part_touches(lengths, block):
    ends = np.cumsum([0, *lengths])
    parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    size = int(ends[-1])
    touched = sum(
        min(block, size - first)
        for part in parts
        for first in range(0, size, block)
        if first < part.stop and first + block > part.start
    )
    assert covered(parts, block, size) == touched


@settings(max_examples=40)
@given(
    st.tuples(SIDES, SIDES, SIDES),
    st.sampled_from(["0.4", "0.5"]),
    st.sampled_from([16, 32, 128]),
    st.integers(1, 9),
    st.booleans(),
)
def test_files_and_bytes_are_those_of_every_chunk(shape, ngff, chunk, levels, masked):
    source = stack_of(shape)
    foreseen = forecast_of(
        source, Path("out"), masked=masked, ngff=ngff, chunk=chunk, levels=levels, every=7
    )
    side = chunk * (2 if ngff == "0.5" else 1)
    index = 8 * 16 + 4 if ngff == "0.5" else 0
    files, voxels, size = 0, 0, shape
    for _ in range(levels):
        files += len(list(product(*(range(0, edge, side) for edge in size))))
        chunks = len(list(product(*(range(0, edge, chunk) for edge in size))))
        voxels += chunks * chunk**3
        if max(size) < 128:
            break
        size = tuple(ceil(edge / 2) for edge in size)
    assert foreseen.files["volume"] == files
    assert foreseen.bytes_written["volume"] == 2 * voxels + files * index
    if masked:
        assert foreseen.files["mask"] == foreseen.files["masked"] == files
        assert foreseen.bytes_written["mask"] == voxels + files * index
        assert foreseen.keyframes == len({*range(0, shape[0], 7), shape[0] - 1})
        assert foreseen.files["keyframes"] == foreseen.keyframes * ceil(shape[1] / ROWS_A_CHUNK)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_a_conversion_leaves_as_many_files_and_bytes_as_were_foreseen(cluster, tmp_path, ngff):
    noise = np.random.default_rng(0).integers(1, 2**16, (70, 150, 140), np.uint16)
    zarr.save_array(tmp_path / "stack.zarr", noise, zarr_format=2)
    options = {"ngff": ngff, "chunk": 32, "compressor": "none"}
    out = tmp_path / "out.zarr"
    foreseen, *_ = foresee(tmp_path / "stack.zarr", out, conversion=True, **options)
    reporter = Reporter()
    zarrmask.convert(tmp_path / "stack.zarr", out, scheduler=cluster, reporter=reporter, **options)
    files = [
        path for path in out.rglob("*")
        if path.is_file() and path.name.isdigit()
    ]  # fmt: skip
    assert len(files) == foreseen.files["volume"]
    size = sum(path.stat().st_size for path in files)
    assert size == foreseen.bytes_written["volume"]
    assert {stage.name: stage.items for stage in reporter.stages} == foreseen.tasks


@settings(max_examples=40)
@given(
    st.tuples(SIDES, SIDES, SIDES),
    st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300)),
    st.integers(2**20, 2**28),
)
def test_bytes_read_are_those_of_the_blocks_that_bricks_touch(shape, block, budget):
    block = tuple(min(edge, size) for edge, size in zip(block, shape, strict=True))
    source = stack_of(shape, block[1:])
    source.block = block
    foreseen = forecast_of(source, Path("out"), masked=False)
    grid = brick_grid(shape, 2, block, budget)
    foreseen = foreseen.with_bricks(grid)
    if foreseen.decodes_ahead or block[:2] == (1, 1):
        return
    read = 0
    for index in grid.indices():
        region = grid.region(index)
        sides = [
            sum(
                min(edge, size - first)
                for first in range(0, size, edge)
                if first < part.stop and first + edge > part.start
            )
            for part, edge, size in zip(region, block, shape, strict=True)
        ]
        read += 2 * prod(sides)
    assert foreseen.bytes_read == {"bricks": read, "scratch": foreseen.scratch_bytes}


def test_rows_as_they_lie_are_read_once():
    foreseen = forecast_of(stack_of(SCROLL), Path("out"), masked=False)
    assert foreseen.bytes_read["bricks"] == 2 * prod(SCROLL)
    assert not foreseen.decodes_ahead


def test_slices_of_one_strip_are_decoded_once_ahead():
    foreseen = forecast_of(stack_of(SCROLL, (8_096, 8_096)), Path("out"), masked=False)
    assert foreseen.decodes_ahead
    assert foreseen.tasks["decoding"] == 27_000 / 8
    assert foreseen.decoded_bytes == 2 * 256 * 8_096**2 * 2  # two slabs
    assert foreseen.scratch_bytes == foreseen.bytes_read["scratch"] + foreseen.decoded_bytes
    assert foreseen.bytes_read["slices"] == foreseen.bytes_read["bricks"] == 2 * prod(SCROLL)


# Bricks, workers and memory.


@pytest.mark.parametrize(
    ("expected", "gpus", "local", "options"),
    [
        (True, True, True, {}),
        (True, True, False, {}),
        (False, False, False, {}),
        (False, True, True, {"device": "cpu"}),
        (True, False, False, {"device": "cuda"}),
        (True, False, True, {"device": "cpu", "overlap": True}),
        (False, True, True, {"overlap": False}),
    ],
)
def test_bricks_are_written_while_gpus_detect(expected, gpus, local, options):
    who = Crew(2, 4, 64 * GB, None if local else "tcp://there", gpus=gpus)
    assert writes_meanwhile(who, read_settings(**options)) == expected


def test_who_detects_and_writes_at_once_takes_memory_for_both():
    apart = forecast_of(stack_of(SCROLL), Path("out"))
    both = replace(apart, overlaps=True)
    sizes = {kind: size for kind, (size, _) in apart.memory.tasks.items()}
    assert both.memory.task == sizes["writing a brick"] + sizes["detecting on a slice"]
    assert both.memory.total > apart.memory.total


def test_masks_of_whole_slices_take_memory_beside_those_of_keyframes():
    for propagate in ("field", "hold"):
        keyframes = forecast_of(stack_of(SCROLL), Path("out"), propagate=propagate)
        held = replace(keyframes, held=256)
        more = (
            held.memory.tasks["writing a brick"][0] - keyframes.memory.tasks["writing a brick"][0]
        )
        assert more >= 256 * 256 * 8_096


def crew(memory, workers=2, threads=1, local=True, fixed=True):
    return Crew(workers, threads, memory, None if local else "tcp://there", fixed)


def test_bricks_hold_whole_strips_where_the_memory_allows():
    strips = stack_of(SCROLL, (40, 8_096))
    large = forecast_of(strips, Path("out"), crew(64 * GB))
    assert large.plan.grid.brick == (256, 1280, 8_096)  # 1280: the least of 40 and of 256
    assert large.fits
    assert not large.decodes_ahead
    small = forecast_of(strips, Path("out"), crew(6 * GB))
    assert small.decodes_ahead
    assert small.fits


def test_bricks_of_rows_as_they_lie_do_not_grow_with_memory():
    bricks = {
        forecast_of(stack_of(SCROLL), Path("out"), crew(memory * GB)).plan.grid.brick
        for memory in (16, 64, 1000)
    }
    assert bricks == {(256, 256, 8_096)}


def with_any_bricks(forecast):
    """The same with bricks of all sizes."""
    form = forecast.pyramids["mask"].format
    for budget in (2**n for n in range(20, 36)):
        grid = brick_grid(forecast.plan.shape, 2, forecast.source.block, budget, form.step)
        yield forecast.with_bricks(grid)


@pytest.mark.parametrize(
    ("compressor", "bytes_"), [("blosc-zstd:6", 0), ("blosc-zstd:9", 36_000_000), ("none", 0)]
)
def test_encoders_have_tables(tmp_path, compressor, bytes_):
    source, crew = stack_of((64, 256, 256)), Crew(2, 1, 64 * GB)
    plain, other = (
        forecast_of(source, tmp_path, crew, masked=False, compressor=name).memory.total
        for name in ("blosc-lz4", compressor)
    )
    assert other - plain == pytest.approx(1.1 * 2 * bytes_, abs=1)  # a brick's row of two files


@given(st.integers(1, 200), st.integers(1, 64), st.sampled_from([1, 10, 256, 8_096]))
def test_what_is_chosen_fits_or_is_the_least(memory, workers, rows):
    source = stack_of((1_000, 8_096, 8_096), (rows, 8_096))
    foreseen = forecast_of(source, Path("out"), crew(memory * GB, workers))
    if not foreseen.fits:
        assert not any(one.fits for one in with_any_bricks(foreseen))
        with pytest.raises(RoomError, match="--memory"):
            check_room(foreseen, Path("/"), None)


@pytest.mark.parametrize("memory", [4, 6, 10])
def test_workers_are_fewer_for_want_of_memory_unless_they_were_asked_for(memory):
    fewer = forecast_of(stack_of(SCROLL), Path("out"), crew(memory * GB, 64, fixed=False))
    assert 1 < fewer.crew.workers < 64
    assert fewer.fits
    more = replace(fewer, crew=replace(fewer.crew, workers=fewer.crew.workers + 1))
    assert not any(one.fits for one in with_any_bricks(more))
    asked = forecast_of(stack_of(SCROLL), Path("out"), crew(memory * GB, 64))
    assert asked.crew.workers == 64
    assert f"--workers {fewer.crew.workers}" in want_of_memory(asked)


@given(st.integers(4, 64), st.integers(1, 16), st.floats(0.5, 1))
def test_who_goes_on_with_less_memory_keeps_the_bricks_and_does_with_fewer(memory, workers, left):
    strips = stack_of((1_000, 8_096, 8_096), (40, 8_096))
    first = forecast_of(strips, Path("out"), crew(memory * GB, workers, fixed=False))
    less = replace(first, crew=replace(first.crew, memory=int(left * memory * GB)))
    again = less.staffed()
    assert again.plan == first.plan
    if replace(less, crew=replace(less.crew, workers=1)).fits:
        assert again.fits
        more = replace(again, crew=replace(again.crew, workers=again.crew.workers + 1))
        assert again.crew.workers == first.crew.workers or not more.fits
    asked = replace(less, crew=replace(less.crew, fixed=True))
    assert asked.staffed() == asked


def test_for_want_of_memory_all_gpus_are_used_by_fewer_tasks():
    def foreseen(memory, gpus=True):
        crew = Crew(8, 16, memory * GB, fixed=False, gpus=gpus)
        return forecast_of(stack_of(SCROLL), Path("out"), crew)

    assert (foreseen(128).crew.workers, foreseen(128).crew.threads) == (8, 16)
    fewer = foreseen(40)
    assert fewer.fits
    assert fewer.crew.workers == 8
    assert 1 <= fewer.crew.threads < 16
    small = foreseen(10)
    assert not small.fits
    assert "CUDA_VISIBLE_DEVICES with" in want_of_memory(small)
    # CUDA itself takes memory of the machine.
    assert foreseen(128).memory.total > foreseen(128, gpus=False).memory.total + 8 * GB


def test_a_cluster_s_workers_are_told_to_have_more():
    foreseen = forecast_of(stack_of(SCROLL), Path("out"), crew(8 * GB, 8, 4, local=False))
    with pytest.raises(RoomError, match=r"has 1\.0 GB.*--memory-limit"):
        check_room(foreseen, Path("/"), None)


def test_nothing_is_refused_where_nobody_knows_the_memory():
    foreseen = forecast_of(stack_of(SCROLL), Path("out"), crew(None, 8, 4, local=False))
    assert foreseen.fits
    assert foreseen.plan.grid.brick == (256, 256, 8_096)


@pytest.mark.parametrize("size", ["much", "-4GB", "4 apples", "", 0])
def test_a_size_that_is_none_is_named(size):
    with pytest.raises(SettingsError, match="not a size"):
        find_crew(CrewRequest(memory=size), Reporter())


def test_a_crew_of_this_machine():
    crew = find_crew(CrewRequest(memory="8GB", workers=3), Reporter())
    assert crew == Crew(3, 1, 8 * GB, imported=shared_imports())
    assert find_crew(CrewRequest(), Reporter()).memory > GB
    assert not find_crew(CrewRequest(), Reporter()).fixed


def test_a_crew_of_a_cluster_has_what_its_workers_are_limited_to(tmp_path):
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=3,
            memory_limit="2GB",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
        Client(cluster),
    ):
        found = find_crew(CrewRequest(cluster.scheduler_address), Reporter())
    assert (found.workers, found.threads, found.local) == (2, 3, False)
    assert found.memory == pytest.approx(0.8 * 4 * GB)


# Space.


def test_space_that_will_certainly_not_do_is_refused(monkeypatch, tmp_path):
    foreseen = forecast_of(stack_of(SCROLL), tmp_path)
    monkeypatch.setattr("zarrmask.planning.room.free_space", lambda place: 300 * GB)
    with pytest.raises(RoomError, match=r"300\.0 GB are free at .* 353\.9 GB at the very least"):
        check_room(foreseen, tmp_path / "out", 1.0)
    assert "up to" in check_room(foreseen, tmp_path / "out", 0.5)[0]  # the rest of a stopped run
    assert check_room(foreseen, tmp_path / "out", None) == []
    monkeypatch.setattr("zarrmask.planning.room.free_space", lambda place: 20_000 * GB)
    assert check_room(foreseen, tmp_path / "out", 1.0) == []


def test_free_space_is_that_of_the_folder_that_is_there(tmp_path):
    there = shutil.disk_usage(tmp_path).free
    assert free_space(tmp_path / "not" / "yet") == pytest.approx(there, rel=0.01)
    assert free_space(UPath("memory://somewhere")) is None


@pytest.fixture
def anew(monkeypatch):
    """As if no worker had begun in this process: what they share is settled by the first."""
    monkeypatch.setattr("zarrmask.workers.processes._origin", None)
    monkeypatch.setattr("zarrmask.workers.processes._process_id", lambda: None)


def test_a_run_is_refused_before_anything_is_written(stack, tmp_path, anew):
    fitting = 3 if shared_imports() else 2
    with pytest.raises(RoomError, match="--memory"):
        zarrmask.run(stack, tmp_path / "out", memory="500MB", workers=2)
    with pytest.raises(RoomError, match=f"--workers {fitting}, or --memory"):
        zarrmask.convert(stack, tmp_path / "out.zarr", memory="640MB", workers=9)
    assert not list(tmp_path.iterdir())


# Runs.


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "zarrmask", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".zattrs"
    }


@pytest.fixture(scope="module")
def strips(tmp_path_factory):
    """Compressed slices whose strips of 96 rows want bricks of 768 rows."""
    folder = tmp_path_factory.mktemp("strips")
    phantom = Phantom((40, 800, 560), seed=2)
    for z in range(24):
        tifffile.imwrite(
            folder / f"{z}.tif", phantom.slice(8 + z)[0], compression="zlib", rowsperstrip=96
        )
    return folder


def test_a_stopped_run_goes_on_with_other_memory_and_its_first_bricks(
    strips, cluster, tmp_path, anew
):
    whole, again = tmp_path / "whole.zarr", tmp_path / "again.zarr"
    zarrmask.convert(strips, whole, scheduler=cluster)
    foreseen, *_ = foresee(strips, again, conversion=True, workers=1)
    assert foreseen.plan.grid.brick == (24, 768, 560)
    memory = foreseen.memory.total - 1
    process = command("convert", strips, again, "--workers", 1, "--memory", memory)
    entries = tmp_path / ".again.zarr.zarrmask/finished/writing/level-0"
    try:
        while not any(entries.glob("*/*.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finished = [path.stem.split("-") for path in entries.glob("*/*.json")]
    written = {
        chunk: chunk.stat().st_mtime_ns
        for _, y, _ in finished
        for row in (2 * int(y), 2 * int(y) + 1)
        for chunk in again.glob(f"0/0/{row}/*")
    }
    bricks = json.loads((again / ".zattrs").read_text())["zarrmask"]["bricks"]
    assert bricks == [24, 256, 560]
    process = command("convert", strips, again, "--workers", 2, "--memory", "9GB")
    assert "predicted" in process.communicate(timeout=120)[1]
    assert contents(again) == contents(whole)
    assert written
    assert all(chunk.stat().st_mtime_ns == when for chunk, when in written.items())


@pytest.mark.slow
def test_a_run_takes_what_was_predicted(stack, tmp_path):
    # Long enough to be looked at: memory is, ten times a second.
    process = command("run", stack, tmp_path / "out", "--workers", 2, "--every", 1)
    message = process.communicate(timeout=300)[1]
    assert process.returncode == 0, message
    record = json.loads((tmp_path / "out/run.json").read_text())
    measured, predicted = record["peak_memory_bytes"], record["plan"]["peak_memory_bytes"]
    assert 0.5 * predicted <= measured <= predicted
    items = {stage["name"]: stage["items"] for stage in record["stages"]}
    assert record["plan"]["tasks"].items() <= items.items()


@pytest.mark.parametrize(
    ("block", "depth", "options", "least"),
    [
        pytest.param(1, 256, (), 0.5, marks=pytest.mark.slow),
        (300, 256, (), 0.5),
        pytest.param(1, 192, ("--compressor", "blosc-zstd:7"), 0.5, marks=pytest.mark.slow),
        pytest.param(1, 96, ("--compressor", "blosc-zstd:9"), 0.5, marks=pytest.mark.slow),
        # Files that are written in a tenth of a second each, as often as memory is looked at.
        pytest.param(1, 256, ("--chunk", 512), 0.2, marks=pytest.mark.slow),
        pytest.param(1, 256, ("--ngff", "0.5", "--chunk", 256), 0.2, marks=pytest.mark.slow),
    ],
)
def test_a_conversion_takes_what_was_predicted(tmp_path, block, depth, options, least):
    noise = np.random.default_rng(0).integers(0, 2**16, (300, 1500), np.uint16)
    compression = {"compression": "lzw", "rowsperstrip": block} if block > 1 else {}
    (tmp_path / "stack").mkdir()
    for z in range(depth):
        tifffile.imwrite(tmp_path / f"stack/{z}.tif", np.roll(noise, 37 * z, 1), **compression)
    process = command(
        "convert", tmp_path / "stack", tmp_path / "out.zarr", "--workers", 2, *options
    )
    message = process.communicate(timeout=300)[1]
    assert process.returncode == 0, message
    sizes = re.findall(r"([0-9.]+) (MB|GB)", message.partition("peak memory")[2])
    measured, predicted = (float(size) * {"MB": 1, "GB": 1000}[unit] for size, unit in sizes)
    assert least * predicted <= measured <= predicted


@pytest.mark.parametrize("hands", [1, 2, 8])
@pytest.mark.parametrize("rows", [1, 2048])
def test_all_hands_get_bricks(tmp_path, rows, hands):
    source = stack_of((128, 2048, 2048), (rows, 2048))
    foreseen = forecast_of(source, tmp_path, Crew(hands, 1, 64 * GB), masked=False)
    assert len(foreseen.plan.grid) >= hands
    assert foreseen.decodes_ahead == (rows > 1 and hands > 1)  # slices whole, by one alone
