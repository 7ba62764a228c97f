"""Whatever slices are packed in, a conversion unpacks every part of them once."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial, wraps

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr

import zarrmask
from zarrmask.masking import Sighting, seek
from zarrmask.pyramid import brick_grid
from zarrmask.running import slabs
from zarrmask.stack import cuts_blocks, open_source

SHAPE = (20, 300, 700)  # four bricks of the smallest size


def tiffs(folder, volume, **options):
    for z, image in enumerate(volume):
        tifffile.imwrite(folder / f"{z}.tif", image, **options)


def images(folder, volume, suffix):
    for z, image in enumerate(volume):
        assert cv2.imwrite(str(folder / f"{z}{suffix}"), image)


# How slices are packed, the parts of a slice, and whether they are decoded ahead of the bricks.
PACKINGS = {
    "png": (partial(images, suffix=".png"), 1, True),
    "one-strip": (partial(tiffs, compression="lzw", rowsperstrip=300), 1, True),
    "strips-of-7": (partial(tiffs, compression="lzw", rowsperstrip=7), 43, True),
    "strips-of-1": (partial(tiffs, compression="zstd", rowsperstrip=1), 300, True),
    "strips-of-64": (partial(tiffs, compression="lzw", rowsperstrip=64), 5, True),
    "tiles-of-48": (partial(tiffs, compression="lzw", tile=(48, 48)), 7 * 15, True),
    "tiles-of-256": (partial(tiffs, compression="lzw", tile=(256, 256)), 6, False),
}


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(1).integers(0, 700, SHAPE, np.uint16)


@pytest.fixture
def small_bricks(monkeypatch):
    monkeypatch.setattr("zarrmask.planning.forecast.brick_grid", smallest)


@pytest.fixture
def decodes(monkeypatch):
    """How often each strip, tile or file has been decoded since."""
    counts = Counter()

    def counted(decode):
        @wraps(decode)  # tifffile takes none but imagecodecs' own
        def count(data, *args, **kwargs):
            counts[bytes(data)] += 1
            return decode(data, *args, **kwargs)

        return count

    for name in ("jpeg_decode", "png_decode", "lzw_decode", "zstd_decode"):
        monkeypatch.setattr(imagecodecs, name, counted(getattr(imagecodecs, name)))
    known = tifffile.TIFF.DECOMPRESSORS  # remembers what it gave
    monkeypatch.setattr(known, "_codecs", {1: known[1]})
    return counts


def smallest(shape, itemsize, block, budget, step):
    """Bricks as small as they may be, whatever fits into memory."""
    return brick_grid(shape, itemsize, block, 1, step)


def level(out, n=0):
    return zarr.open_array(out / str(n), mode="r")[:]


def contents(folder):
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".zattrs"}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.usefixtures("small_bricks")
def test_every_part_is_decoded_once(packing, volume, here, decodes, tmp_path, cluster, monkeypatch):
    decoded_first = []

    def decoded_ahead(*args, decode=slabs.decoded_into):
        decoded_first.append(args)
        return decode(*args)

    monkeypatch.setattr(slabs, "decoded_into", decoded_ahead)
    write, parts, ahead = PACKINGS[packing]
    for name, save in (("packed", write), ("plain", tiffs)):
        (tmp_path / name).mkdir()
        save(tmp_path / name, volume)
    source = open_source(tmp_path / "packed")
    edges = ([0, 20], [0, 256, 300], [0, 512, 700])
    assert cuts_blocks(source.block, edges) == ahead
    out = zarrmask.convert(tmp_path / "packed", tmp_path / "packed.zarr", scheduler=here)
    assert set(decodes.values()) == {1}
    assert len(decodes) == parts * len(volume)
    plain = zarrmask.convert(tmp_path / "plain", tmp_path / "plain.zarr", scheduler=cluster)
    np.testing.assert_array_equal(level(out), volume)
    assert contents(out) == contents(plain)
    assert len(decoded_first) == ahead
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"packed", "plain", "packed.zarr", "plain.zarr"}


@pytest.mark.usefixtures("small_bricks")
def test_every_jpeg_is_decoded_once(volume, here, decodes, tmp_path):
    (tmp_path / "jpeg").mkdir()
    images(tmp_path / "jpeg", volume.astype(np.uint8), ".jpg")
    out = zarrmask.convert(tmp_path / "jpeg", tmp_path / "jpeg.zarr", scheduler=here)
    assert set(decodes.values()) == {1}
    assert len(decodes) == len(volume)
    truth = [cv2.imread(str(tmp_path / f"jpeg/{z}.jpg"), cv2.IMREAD_UNCHANGED) for z in range(20)]
    np.testing.assert_array_equal(level(out), truth)


@pytest.mark.usefixtures("small_bricks")
def test_slabs_come_one_after_another(here, decodes, tmp_path):
    """Three slabs, one of them with a missing slice; no more than two are on disk."""
    folder = tmp_path / "stack"
    folder.mkdir()
    volume = np.random.default_rng(2).integers(0, 90, (600, 3, 600), np.uint16)
    tiffs(folder, volume, compression="lzw")
    (folder / "300.tif").unlink()
    volume[300] = 0
    most = 0
    scratch = tmp_path / ".out.zarr.zarrmask/scratch/decoded"
    rmtree = slabs.shutil.rmtree

    def watched(path, **options):
        nonlocal most
        most = max(most, len(list(scratch.iterdir())) if scratch.exists() else 0)
        rmtree(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slabs.shutil, "rmtree", watched)
        out = zarrmask.convert(folder, tmp_path / "out.zarr", allow_missing=True, scheduler=here)
    assert set(decodes.values()) == {1}
    assert len(decodes) == 599
    assert 1 <= most <= 2
    np.testing.assert_array_equal(level(out), volume)
    assert {path.name for path in tmp_path.iterdir()} == {"stack", "out.zarr"}


@pytest.mark.usefixtures("small_bricks")
def test_what_no_brick_wants_is_not_decoded(volume, here, decodes, tmp_path, monkeypatch):
    """Without the volume, slices whose keyframes are empty; and slabs that are finished."""
    (tmp_path / "stack").mkdir()
    images(tmp_path / "stack", volume, ".png")

    def detect(client, source, plan, window, detectors, store, ledger, reporter, shares):
        def looks(ask):
            while positions := ask():
                for position in positions:
                    mask = np.zeros(source.shape[1:], np.uint8)
                    mask[100:280, 480:530] = 255 if plan.keyframes[position] in (5, 10) else 0
                    store.write_mask(position, mask)
                    found = int(mask.any())
                    boxes, scores = np.ones((found, 4)), np.ones(found)
                    yield position, Sighting.of_mask(mask, boxes, scores)

        store.reserve(len(plan.keyframes), *source.shape[1:])
        for found in seek(plan.placing, looks, mends=False):
            store.write_sightings(plan.numbers, found.sightings, found.states, found.positions)
            yield found

    monkeypatch.setattr("zarrmask.running.cutout.detect_keyframes", detect)
    monkeypatch.setattr("zarrmask.workers.detectors.Detectors.load", lambda _: None)
    decodes.clear()
    options = {"every": 5, "propagate": "hold", "dilate": 0, "volume": False}
    options["detect_window"] = (0, 700)
    zarrmask.run(tmp_path / "stack", tmp_path / "out", scheduler=here, **options)
    wanted = {(tmp_path / f"stack/{z}.png").read_bytes() for z in range(5, 15)}
    assert decodes == Counter(wanted)
    expected = np.zeros_like(volume)
    expected[5:15, 100:280, 480:530] = volume[5:15, 100:280, 480:530]
    np.testing.assert_array_equal(level(tmp_path / "out/masked.zarr"), expected)


CONVERT = """
import sys
import zarrmask
import zarrmask.planning.forecast
from zarrmask.pyramid import brick_grid


def smallest(shape, itemsize, block, budget, step):
    return brick_grid(shape, itemsize, block, 1, step)


if __name__ == "__main__":
    zarrmask.planning.forecast.brick_grid = smallest
    zarrmask.convert(sys.argv[1], sys.argv[2], workers=1)
"""


@pytest.mark.slow
def test_a_conversion_killed_while_it_decodes_goes_on(tmp_path):
    folder = tmp_path / "stack"
    folder.mkdir()
    volume = np.random.default_rng(3).integers(0, 90, (530, 40, 700), np.uint16)
    tiffs(folder, volume, compression="zstd", rowsperstrip=9)
    (tmp_path / "convert.py").write_text(CONVERT)
    command = [sys.executable, tmp_path / "convert.py", folder]
    subprocess.run([*command, tmp_path / "whole.zarr"], check=True, timeout=120)
    work = tmp_path / ".again.zarr.zarrmask"
    for moment in ("scratch/decoded/0/9.raw", "finished/writing/level-0/*/1-0-*.json"):
        process = subprocess.Popen([*command, tmp_path / "again.zarr"], start_new_session=True)
        try:
            deadline = time.monotonic() + 100
            while not any(work.glob(moment)):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for torn in work.glob("scratch/decoded/*/*.raw"):
        torn.write_bytes(torn.read_bytes()[:1000])  # as a power cut may leave it
    subprocess.run([*command, tmp_path / "again.zarr"], check=True, timeout=120)
    assert contents(tmp_path / "again.zarr") == contents(tmp_path / "whole.zarr")
    np.testing.assert_array_equal(level(tmp_path / "again.zarr"), volume)
    assert not work.exists()
