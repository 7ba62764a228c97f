"""The benchmarks of conversions and detection, so small that their figures say nothing."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import dask
import detect
import feeding
import numpy as np
import pytest
import soak
import teach
import torch
from conversion import parts
from conversion.contest import Contestant, Figures, contest, doubts, ratio
from conversion.contestants import check_pyramid, cp
from conversion.findings import Findings
from conversion.given import given_masks
from conversion.measuring import measure
from conversion.stacks import FORMATS, Stacks, read_slice
from conversion.staged import WritingReporter
from conversion.watched import counted

import zarrmask
from zarrmask.coco import read_coco
from zarrmask.detection.actors import DetectorSpec
from zarrmask.detection.devices import has_bfloat16
from zarrmask.phantom.mistakes import MISTAKES
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.training.fine_tuning import annotated_lesson

MODES = ("strong", "weak")
CONVERT = Path(parts.__file__).parents[1] / "convert.py"


@pytest.fixture
def stacks(tmp_path):
    (tmp_path / "stacks").mkdir()
    return Stacks(tmp_path / "stacks")


def test_program_prints_and_saves(tmp_path):
    json_file = tmp_path / "figures.json"
    options = "--part table --part sizes --only cp --only ome-zarr-py --rounds 1 --few 1"
    sizes = f"--shape 8 140 150 --slices 2 4 --folder {tmp_path} --json {json_file}"
    done = subprocess.run(
        [sys.executable, CONVERT, *options.split(), *sizes.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ome-zarr-py: levels, chunks and dtype as asked, level 0 equal" in done.stdout
    content = json.loads(json_file.read_text())
    found = content["parts"]["table"]["figures"]["contestants"]
    assert set(found) == {"cp", "ome-zarr-py"}
    assert all(len(mine["seconds"]) == len(mine["start_seconds"]) == 1 for mine in found.values())
    assert found["ome-zarr-py"]["peak_bytes"] > 2**20
    assert found["cp"]["written_bytes"] > 8 * 140 * 150 * 2
    assert set(content["parts"]["sizes"]["figures"]["contestants"]) == {
        "cp, 2 slices",
        "cp, 4 slices",
    }
    assert content["machine"]["versions"]["zarrmask"] == zarrmask.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux")
def test_processor_time_of_what_outlives_a_command_counts():
    work = "import time\nwhile time.process_time() < 0.5: pass"
    command = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {work!r}])"
    assert measure([sys.executable, "-c", command]).cpu >= 0.5


@pytest.mark.parametrize("what", ["convert", "run"])
def test_where_time_goes(what, stacks, tmp_path):
    stack = stacks.make((3, 140, 150), "LZW, strips of 16 rows")
    command = [sys.executable, "-m", "conversion.watched", what, stack, tmp_path / "out.zarr"]
    seen = json.loads(measure(command).said)
    assert seen["decoded"] == 3 * 9
    parts = {"reading", "downsampling", "compressing", "writing", "the rest of the tasks"}
    parts |= {"Dask and the rest", "sync"} | ({"masking"} if what == "run" else set())
    assert set(seen["parts"]) == parts
    assert min(seen["parts"].values()) > 0


@pytest.mark.parametrize("kind", ["uncompressed", "JPEG", "PNG"])  # tifffile keeps its decoders
def test_every_decoder_is_counted(kind, stacks):
    stack = stacks.make((3, 40, 50), kind)
    counts = Counter()
    with counted(counts):
        found = zarrmask.open_stack(stack)[1].compute(scheduler="synchronous")
    assert counts.total() == (0 if kind == "uncompressed" else FORMATS[kind].pieces(40))
    assert np.array_equal(found, read_slice(sorted(stack.iterdir())[1]))


def test_masks_that_are_given(stacks, cluster, tmp_path):
    stack = stacks.make((25, 200, 300))
    reporter = WritingReporter()
    with given_masks(0.3):
        record = zarrmask.run(stack, tmp_path / "out", scheduler=cluster, reporter=reporter)
    assert record["voxels"]["kept"] / record["voxels"]["total"] == pytest.approx(0.3, abs=0.02)
    assert reporter.ended > reporter.began > 0


def test_noise_is_not_compressed_and_a_wrong_pyramid_is_noticed(stacks, cluster, tmp_path):
    stack = stacks.make((3, 140, 150))
    out = zarrmask.convert(stack, tmp_path / "out.zarr", scheduler=cluster)
    check_pyramid(stack, out)
    written = sum(path.stat().st_size for path in (out / "0").rglob("*"))
    assert written > 3 * 140 * 150 * 2
    chunk = next(path for path in (out / "0").rglob("*") if path.is_file() and path.name == "1")
    chunk.unlink()
    with pytest.raises(AssertionError, match="level 0 differs"):
        check_pyramid(stack, out)


def test_a_contestant_that_fails_is_told_of(stacks, tmp_path, capsys):
    stack, small = stacks.make((5, 20, 30)), stacks.make((2, 20, 30))
    them = [
        Contestant("broken", lambda stack, out: ["ls", "/no such folder"], stack, small),
        Contestant("cp", cp, stack, small),
    ]
    results = contest(them, tmp_path, 2)
    assert "no such folder" in results["broken"].failed
    assert "broken failed" in capsys.readouterr().err
    assert len(results["cp"].whole) == len(results["cp"].start) == 2
    found = Findings()
    found.contest(results, "broken")
    assert found.failures[0].startswith("broken: `ls /no such folder")


def test_slices_are_made_once(stacks):
    small, large = stacks.make((3, 20, 30)), stacks.make((5, 20, 30))
    assert [path.stat().st_nlink for path in sorted(large.iterdir())] == [2, 2, 2, 1, 1]
    assert len(list(small.iterdir())) == 3
    stacks.keep((5, 20, 30))
    assert [path.stat().st_nlink for path in large.iterdir()] == [1] * 5
    assert not small.exists()


def test_a_disk_that_is_too_small_is_refused(stacks):
    with pytest.raises(RuntimeError, match="are free in"):
        stacks.make((2**20, 2**16, 2**16))


def test_ratios_and_doubts():
    base = Figures(whole=[3.0, 3.0, 3.2], start=[1.0, 1.0, 1.0])
    other = Figures(whole=[8.0, 7.0, 9.0], start=[2.0, 2.0, 2.0])
    nothing = Figures(whole=[1.0, 1.0, 1.0], start=[1.0, 1.1, 1.2])
    assert ratio(other, base) == 3
    assert ratio(nothing, base) is None
    assert ratio(base, nothing) is None
    assert doubts({"base": base}) == []
    assert doubts({"base": Figures(whole=[3.0], start=[1.0])}) == [
        "fewer than 3 rounds do not tell noise"
    ]
    shaky = doubts({"other": Figures(whole=[8, 7, 12], start=[2, 2, 2]), "nothing": nothing})
    assert "nothing: no longer than the start" in shaky[0]
    assert "other" in shaky[1]


@pytest.fixture
def tiny_checkpoint(tmp_path):
    """The checkpoint that ships, made to look at slices of 64 pixels."""
    path = tmp_path / "tiny.safetensors"
    path.symlink_to(DEFAULT_CHECKPOINT)
    config = DEFAULT_CHECKPOINT.with_suffix(".yaml").read_text()
    path.with_suffix(".yaml").write_text(config.replace("SIZE_TEST: 448", "SIZE_TEST: 64"))
    return path


@pytest.mark.slow
def test_ways_to_detect_take_turns(tmp_path, tiny_checkpoint):
    stack = detect.make_stack(tmp_path / "stack", 2, 100)
    them = (detect.NETWORK[0], detect.WHOLE[0])
    teams = detect.contest(them, "cpu", tiny_checkpoint, stack, 2)
    assert [len(one.seconds) for one in teams] == [2, 2]
    assert [one.masks[0].shape for one in teams] == [(64, 64), (100, 100)]
    assert all(one.peak > 50e6 for one in teams)
    found = detect.told(teams)
    assert found.figures["teams"]["whole path, full, 1 x 1"]["seconds"] == teams[1].seconds
    assert " 1.0000 |" in "\n".join(found.lines)
    whole = next(goal for goal in found.goals if goal.what.startswith("whole path, full"))
    assert float(whole.measured) > 0


@pytest.mark.slow
def test_a_detector_is_fed(tmp_path, tiny_checkpoint):
    stack = detect.make_stack(tmp_path / "stack", 2, 100)
    found = feeding.measure(DetectorSpec(tiny_checkpoint), "cpu", stack, 5, [1, 2])
    assert found.figures.keys() == {"1", "2"}
    assert all(0 < share <= 1 for share in found.figures.values())
    (goal,) = found.goals
    assert goal.measured == f"{max(found.figures.values()):.2f}"


@pytest.mark.slow
def test_fast_is_compared_with_full():
    if not has_bfloat16(torch.device("cpu")):
        pytest.skip("this processor does not compute in bfloat16")
    found = detect.agreement(2, "cpu")
    assert len(found.figures["simulated"]) == 2
    assert min(found.figures["simulated"]) > 0.9


def test_ways_to_place_keyframes_are_compared(tmp_path):
    program = CONVERT.with_name("keyframes.py")
    subprocess.run(
        [sys.executable, program, tmp_path, "--depths", "130", "--detector", "0"], check=True
    )
    content = json.loads((tmp_path / "keyframes.json").read_text())
    scores = {one["way"]: one for one in content["scores"]["130 simulated slices, truth"]}
    held, adaptive = scores["every 10, held"], scores["adaptive, 5 %"]
    assert held["detections"] == 13
    assert 4 <= adaptive["detections"] <= 18
    assert 0 < held["mean"] < adaptive["mean"] < 1
    assert adaptive["lost"] < held["lost"]
    tally = content["mistakes"]["130 slices, every 10"]
    assert tally["good"] + sum(tally.get(kind, 0) for kind in MISTAKES) == 6 * 13
    assert (tmp_path / "keyframes.png").stat().st_size > 10_000


@pytest.mark.slow
def test_keyframes_that_place_themselves_need_a_third(tmp_path):
    """Of the detections of every tenth slice, held, for a worst slice that is no worse."""
    program = CONVERT.with_name("keyframes.py")
    subprocess.run(
        [sys.executable, program, tmp_path, "--depths", "3000", "--detector", "0"], check=True
    )
    content = json.loads((tmp_path / "keyframes.json").read_text())
    scores = {one["way"]: one for one in content["scores"]["3,000 simulated slices, truth"]}
    held, adaptive = scores["every 10, held"], scores["adaptive, 15 %"]
    assert 3 * adaptive["detections"] <= held["detections"]
    assert adaptive["worst_big"] >= held["worst_big"]


@pytest.mark.slow
def test_scaling_says_where_the_time_goes(tmp_path):
    program = CONVERT.with_name("scaling.py")
    real = "--workers 1 --rounds 1 --shape 12 96 128"
    simulated = "--threads 1 2 --keyframes 2 --keyframe-seconds 0.02 --bricks 2 --brick-seconds 0.1"
    done = subprocess.run(
        [sys.executable, program, tmp_path, *real.split(), *simulated.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    kept = json.loads((tmp_path / "scaling.json").read_text())
    timings = {(one["what"], one["mode"], one["workers"]): one for one in kept["real"]}
    assert set(timings) == {(what, mode, 1) for what in ("convert", "run") for mode in MODES}
    for one in (*kept["real"], *kept["simulated"]):
        assert sum(one["parts"].values()) == pytest.approx(one["workers"] * one["wall"])
        assert min(one["parts"].values()) > -0.05
    assert timings["convert", "strong", 1]["parts"]["detecting"] == 0
    assert timings["run", "strong", 1]["parts"]["detecting"] > 0.01
    for what in ("convert", "run"):
        assert timings[what, "strong", 1]["parts"]["writing"] > 0.001
    asleep = {(one["mode"], one["workers"]): one["parts"] for one in kept["simulated"]}
    assert asleep["strong", 2]["writing"] > 4 * 0.099  # bricks of 2 workers; sleep may take longer
    assert asleep["weak", 1]["writing"] > 2 * 0.099
    assert "| simulated | strong | 2 |" in done.stdout
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_a_line_through_memory_tells_what_grows():
    def memory(grown):
        # Imports at first, then noise and what is never given back.
        noise = np.random.default_rng(0).normal(0, 2e6, 300)
        return [(t, int(3e8 * min(1, t / 20) + grown * t / 300 + noise[t])) for t in range(300)]

    stays, grows = soak.fit("client", memory(0)), soak.fit("worker", memory(9e7))
    assert abs(stays.growth) < 0.01
    assert not stays.grows
    assert grows.growth == pytest.approx(0.6 / (10 / 3 + 1) * 1, rel=0.5)
    assert grows.grows


def test_a_soak_sets_what_dask_has():
    for name in soak.HISTORY:
        assert dask.config.get(f"distributed.{name.lower().replace('__', '.')}")


def test_what_a_soak_saw_decides_how_it_ends():
    run = {"seconds": 9.0, "kills": 1, "workers": {}, "wrong": []}
    line = soak.Line("client", 9, 100.0, 2e8, 2.1e8, 230_000_000)
    seen = {
        "slices": 40,
        "files": 7,
        "minutes": 1.0,
        "undisturbed_seconds": 8.0,
        "runs": [run],
        "kills": [(3.0, "first", "writing")],
        "memory": [asdict(line)],
    }
    assert soak.told(seen)[1]
    assert not soak.told({**seen, "runs": [{**run, "wrong": ["mask.zarr/0/0/0/0"]}]})[1]
    assert not soak.told({**seen, "memory": [asdict(replace(line, ends=2.3e8))]})[1]


@pytest.mark.slow
def test_a_soak_kills_workers_and_compares_bytes(tmp_path):
    program, file = CONVERT.with_name("soak.py"), tmp_path / "soak.json"
    options = "--slices 40 --minutes 0 --kills 1"
    done = subprocess.run(
        [sys.executable, program, *options.split(), "--json", file], capture_output=True, text=True
    )
    seen = json.loads(file.read_text())
    assert len(seen["kills"]) == 1
    assert seen["runs"]
    assert seen["files"] > 10
    assert not any(run["wrong"] for run in seen["runs"])
    assert {one["process"] for one in seen["memory"]} == {"client", "scheduler", "survivor"}
    assert "all as of the undisturbed run" in done.stdout


def test_a_new_object_is_drawn_and_its_lessons_differ(tmp_path):
    folder = teach.bones(tmp_path / "new", 3, 1)
    dataset = read_coco(folder / "annotations.json", folder / "images")
    assert dataset.names == ("bone",)
    for number, image in enumerate(dataset.images):
        grey, mask = teach.bone(np.random.default_rng([1, number]))
        np.testing.assert_array_equal(image.grey(), grey)
        assert 0.01 < image.true().area / grey.size < 0.5
        assert grey[mask > 0].mean() > grey[mask == 0].mean() + 30
    recipes = {
        name: annotated_lesson(
            folder / "annotations.json",
            folder / "images",
            config=teach.varied(tmp_path / "config.yaml", changes),
            validate=0,
        ).recipe
        for name, changes in teach.VARIANTS.items()
    }
    assert len(set(recipes.values())) == len(teach.VARIANTS)
