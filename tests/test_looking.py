"""Keyframes that place themselves, and mistakes that are mended, in runs on a real cluster."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tifffile
import zarr

import zarrmask
from zarrmask.detection.detections import Detections, union_mask
from zarrmask.detection.inputs import NetworkInput
from zarrmask.masking import KeyframeStore, Sighting
from zarrmask.masking.seeking import Doubt
from zarrmask.masking.sighting import AS_SEEN, REPLACED, SEEN_ANEW, UNSEEN
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks

OPTIONS = {"every_max": 8, "every_min": 2, "tolerance": 0.4, "dilate": 0, "volume": False}
DARK, AIR = 110, 116
"""Slices of the stack that were scanned badly."""


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def spoiled(stack, tmp_path_factory):
    """The stack with a slice that is nearly black, and one of air."""
    folder = tmp_path_factory.mktemp("spoiled") / "stack"
    shutil.copytree(stack, folder)
    for number, become in ((DARK, lambda image: image >> 9), (AIR, np.zeros_like)):
        path = folder / f"{number:05d}.tif"
        tifffile.imwrite(path, become(tifffile.imread(path)))
    return folder


@pytest.fixture(scope="module")
def mended(spoiled, cluster, tmp_path_factory):
    out = tmp_path_factory.mktemp("mended") / "out"
    return out, zarrmask.run(spoiled, out, scheduler=cluster, **OPTIONS)


def test_keyframes_stand_where_masks_change(stack, cluster, tmp_path):
    options = {**OPTIONS, "tolerance": 3}
    record = zarrmask.run(stack, tmp_path / "out", scheduler=cluster, **options)
    store = KeyframeStore(tmp_path / "out/keyframes.zarr")
    assert store.numbers() == [*range(100, 122, 2), 122]  # may be keyframes
    numbers = [store.numbers()[place] for place in store.seen()]
    assert {100, 108, 116, 122} <= set(numbers)  # are looked at first
    assert record["keyframes"]["count"] == record["keyframes"]["used"] == len(numbers) < 12
    assert record["plan"]["keyframes_at_least"] == 4
    assert record["plan"]["keyframes"] == 12
    detected = [stage for stage in record["stages"] if stage["name"] == "detecting"]
    assert sum(stage["items"] for stage in detected) == len(numbers)
    assert store.used().tolist() == store.seen().tolist()
    mask = zarr.open_array(tmp_path / "out/mask.zarr/0", mode="r")
    for place, number in zip(store.seen(), numbers, strict=True):  # dilated by nothing
        np.testing.assert_array_equal(mask[number - 100], store.masks()[place])
    others = set(range(12)) - set(store.seen().tolist())
    assert all(store.states()[place] == UNSEEN for place in others)
    chunks = {
        int(path.name.split(".")[0])
        for path in (tmp_path / "out/keyframes.zarr/mask").glob("*.*.*")
    }
    assert not chunks & others


def test_what_is_seen_anew_or_replaced_is_recorded(mended):
    out, record = mended
    keyframes = record["keyframes"]
    (redone,) = keyframes["redone"]
    assert (redone["z"], redone["between"]) == (DARK, [DARK - 2, DARK + 2])
    assert redone["by"].startswith("its own contrast")
    (replaced,) = keyframes["replaced"]
    assert (replaced["z"], replaced["between"]) == (AIR, [AIR - 2, AIR + 2])
    assert "nothing was found" in replaced["why"]
    assert keyframes["used"] == keyframes["count"] - 1
    assert keyframes["without_detection"] == []
    warnings = "\n".join(record["warnings"])
    assert f"are not used (--no-mend uses them): {AIR}" in warnings
    assert f"detected anew: {DARK}" in warnings
    assert json.loads((out / "run.json").read_text())["keyframes"] == keyframes
    store = KeyframeStore(out / "keyframes.zarr")
    states = dict(
        zip(store.numbers(), zarr.open_array(out / "keyframes.zarr/state")[:], strict=True)
    )
    assert {z: state for z, state in states.items() if state != AS_SEEN} == {
        DARK: SEEN_ANEW,
        AIR: REPLACED,
    }


def test_the_masks_are_those_of_a_scroll_without_gaps(mended):
    mask = zarr.open_array(mended[0] / "mask.zarr/0", mode="r")[:]
    areas = np.count_nonzero(mask, axis=(1, 2))
    assert areas.min() > 0.8 * areas.max()


def test_nothing_is_mended_unless_asked_for_with_held_masks(spoiled, cluster, tmp_path, capsys):
    options = {**OPTIONS, "propagate": "hold", "every": 2}
    record = zarrmask.run(spoiled, tmp_path / "out", scheduler=cluster, **options)
    said = capsys.readouterr().err
    told = re.search(r"shows \d suspicious ranges of keyframes, the worst at z (\d+)", said)
    assert told is not None, said
    assert int(told[1]) in (DARK, AIR)
    assert record["keyframes"]["without_detection"] == [DARK, AIR]
    assert record["keyframes"]["replaced"] == record["keyframes"]["redone"] == []


@pytest.mark.slow
def test_a_run_that_is_stopped_sees_nothing_twice_and_ends_the_same(spoiled, mended, tmp_path):
    out = tmp_path / "out"
    options = ["--every-max", "8", "--every-min", "2", "--tolerance", "0.4", "--dilate", "0"]
    command = [sys.executable, "-m", "zarrmask", "run", spoiled, out, *options, "--no-volume"]
    written = {}
    for moment in ("detecting/5.json", "redetecting/*.json", None):
        process = subprocess.Popen(
            [str(argument) for argument in (*command, "--workers", "1")],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            while moment and not any(out.glob(f".zarrmask/finished/{moment}")):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.005)
            if moment:
                os.killpg(process.pid, signal.SIGKILL)
            message = process.communicate(timeout=200)[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if moment:
            for entry, when in written.items():
                assert entry.stat().st_mtime_ns == when
            found = out.glob(".zarrmask/finished/*detecting/*.json")
            written = {path: path.stat().st_mtime_ns for path in found}
            assert written
    assert process.returncode == 0, message
    for name in ("keyframes", "mask", "masked"):
        assert contents(out / f"{name}.zarr") == contents(mended[0] / f"{name}.zarr")
    record = json.loads((out / "run.json").read_text())
    assert record["keyframes"] == mended[1]["keyframes"]


SCROLL, ODD = (20.0, 20.0, 60.0, 60.0), (55.0, 0.0, 80.0, 80.0)


def boxes_of(*surely):
    boxes, scores = (np.array(each, np.float32) for each in zip(*surely, strict=True))
    full = np.ones((len(boxes), 4, 4), np.float32)
    return Detections(boxes, scores, np.zeros(len(boxes), np.int64), full)


class Sees:
    """A detector that sees the scroll by one of all means, and by others something odd as well.

    Parameters
    ----------
    by : (int, bool)
        Rows of the image that is shown by these means, and whether in its own contrast.
    """

    def __init__(self, by):
        self._by = by

    def nearest(self, turn):
        return self

    def detect(self, image, shape):
        right = self._by == (len(image), image.max() > 50)
        # In the usual size and contrast what is odd is still there, and unsure.
        alone = right and self._by != (80, False)
        self._found = boxes_of((SCROLL, 0.9), *() if alone else [(ODD, 0.4 if right else 0.8)])
        return self

    def result(self, timeout):
        return self._found


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("surer detections alone", (80, False)),
        ("its own contrast", (80, True)),
        ("its own contrast, smaller", (60, True)),
        ("its own contrast, larger", (100, True)),
    ],
)
def test_by_each_means_a_keyframe_is_seen_anew(name, by, tmp_path):
    """The slice is a dark one."""
    alone, both = boxes_of((SCROLL, 0.9)), boxes_of((SCROLL, 0.9), (ODD, 0.8))
    right, wrong = union_mask(alone, (80, 80)), union_mask(both, (80, 80))
    good = Sighting.of_mask(right, alone.boxes, alone.scores)
    odd = Sighting.of_mask(wrong, both.boxes, both.scores)
    store = KeyframeStore(tmp_path / "keyframes.zarr")
    store.reserve(3, 80, 80)
    store.write_mask(1, wrong)
    doubts = np.empty((1, 1, 1), object)
    doubts[0, 0, 0] = Doubt(1, odd, good, good, 1600.0)
    (entry,) = tasks.detect_anew(
        np.random.default_rng(0).integers(0, 2000, (1, 80, 80), np.uint16),
        doubts,
        shape=(80, 80),
        detectors=Sees(by),
        network_input=NetworkInput(80, 200),
        window="seed",
        store=store,
        ledger=Ledger(tmp_path / "ledger"),
    )
    assert entry["by"] == name
    np.testing.assert_array_equal(store.masks()[1], right)
