"""Keyframes of a pyramid are read at a coarse level, and found where they are at the finest."""

from collections import Counter

import cv2
import numpy as np
import pytest
import tifffile
import yaml
import zarr
from hypothesis import given
from hypothesis import strategies as st

import zarrmask
from zarrmask.phantom import Phantom
from zarrmask.planning import reading
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.stack import open_source

SHAPE = (40, 904, 944)
NETWORK = (448, 468)  # of the shipped detector, for slices of that shape


@pytest.fixture(scope="module")
def runs(cluster, tmp_path_factory):
    """A run on slices, and one on what they were converted to: their folders.

    By a detector that does not look closer: else the finest level would be read.
    From slice to slice little changes, as in a real scroll: a coarse slice shows each of its own.
    And on none of this scroll's are two regions as good as each other, of which the detector might
    take the other one at another level.
    """
    folder = tmp_path_factory.mktemp("coarse")
    (folder / "slices").mkdir()
    phantom = Phantom((60, *SHAPE[1:]), seed=8)
    for z in range(0, SHAPE[0], 4):
        image = phantom.slice(20 + z // 4)[0]
        for same in range(z, z + 4):
            tifffile.imwrite(folder / f"slices/{same}.tif", image)
    model = yaml.safe_load(DEFAULT_CHECKPOINT.with_suffix(".yaml").read_text())
    model["ZARRMASK"]["LOOK_CLOSER"] = False
    (folder / "model.yaml").write_text(yaml.safe_dump(model))
    options = {"every": 4, "scheduler": cluster, **from_afar(folder)}
    zarrmask.convert(folder / "slices", folder / "stack.zarr", scheduler=cluster)
    for name in ("slices", "stack.zarr"):
        zarrmask.run(folder / name, folder / f"of-{name}", **options)
    return folder


def from_afar(folder):
    """Options for a detector that does not look closer."""
    return {"checkpoint": DEFAULT_CHECKPOINT, "config": folder / "model.yaml"}


def keyframes(out, name):
    return zarr.open_array(out / "keyframes.zarr" / name, mode="r")[:]


def test_the_coarsest_level_that_is_fine_enough(runs):
    source = open_source(runs / "stack.zarr")
    coarse, depth = source.coarsest(*NETWORK)
    assert depth == 2
    assert coarse.shape == (20, 452, 472)
    np.testing.assert_array_equal(coarse[:], zarr.open_array(runs / "stack.zarr/1", mode="r")[:])
    assert source.coarsest(453, 468) == (source, 1)
    assert source.coarsest(9999, 9999) == (source, 1)
    assert source.coarsest(1, 1)[1] == 8
    slices = open_source(runs / "slices")
    assert slices.coarsest(1, 1) == (slices, 1)


def small(z, side=1100):
    """A slice of a scroll that is a fifth of its field, and where it is."""
    phantom = Phantom((60, 300, 330), seed=8)
    image, inside = phantom.slice(20 + z // 4)
    air = np.random.default_rng(z).normal(np.median(image[:20]), 900, (side, side))
    field, truth = air.astype(np.uint16), np.zeros((side, side), bool)
    field[300:600, 400:730], truth[300:600, 400:730] = image, inside > 0
    return field, truth


@pytest.mark.parametrize("kind", ["slices", "stack.zarr"])
def test_a_small_scroll_is_looked_at_closer(cluster, tmp_path, runs, kind):
    fields, truths = zip(*(small(z) for z in range(8)), strict=True)
    (tmp_path / "slices").mkdir()
    for z, field in enumerate(fields):
        tifffile.imwrite(tmp_path / f"slices/{z}.tif", field)
    if kind == "stack.zarr":
        zarrmask.convert(tmp_path / "slices", tmp_path / kind, scheduler=cluster)
    lacks = []
    for name, detector in (("from afar", from_afar(runs)), ("closer", {})):
        options = {"every": 4, "scheduler": cluster, **detector}
        zarrmask.run(tmp_path / kind, tmp_path / name, **options)
        found, expected = keyframes(tmp_path / name, "mask")[:2] > 0, np.array(truths[::4])
        lacks.append(1 - (found & expected).sum() / (found | expected).sum())
    assert lacks[1] < 0.7 * lacks[0]


def test_masks_are_those_of_the_finest_level(runs):
    fine, coarse = (keyframes(runs / f"of-{n}", "mask") for n in ("slices", "stack.zarr"))
    assert fine.shape == coarse.shape == (11, *SHAPE[1:])
    assert not np.array_equal(fine, coarse)  # else this test would see one level only
    pixel = int(np.ceil(SHAPE[1] / NETWORK[0]))
    reach = np.ones((8 * pixel + 1, 8 * pixel + 1), np.uint8)  # four pixels of the network's
    for one, other in zip(fine, coarse, strict=True):
        assert one.any()
        least = one.sum() / 10_000  # a detector may see a notch on one and not on the other
        assert (one & ~cv2.dilate(other, reach)).sum() <= least
        assert (other & ~cv2.dilate(one, reach)).sum() <= least
        assert (one & other).sum() / (one | other).sum() > 0.99


def test_boxes_are_in_full_pixels(runs):
    fine, coarse = (keyframes(runs / f"of-{n}", "boxes")[:, 0] for n in ("slices", "stack.zarr"))
    assert np.abs(fine - coarse).max() < SHAPE[2] / 100
    assert coarse[:, 2:].max() > SHAPE[1] / 2


def test_chunks_that_keyframes_share_are_fetched_a_few_times(runs, web, cluster):
    (web.folder / "stack.zarr").symlink_to(runs / "stack.zarr")
    out = web.folder.parent / "out"
    options = {"scheduler": cluster, **from_afar(runs)}
    zarrmask.run(f"{web.url}/stack.zarr", out, every=1, volume=True, **options)
    chunks = Counter(path for _, path, _ in web.requests if path.count("/") > 3)
    finest = {path: n for path, n in chunks.items() if path.startswith("/stack.zarr/0/")}
    assert len(finest) == 64
    assert max(finest.values()) <= 1 + 8  # to be written, and in the sample of grey values
    coarse = [n for path, n in chunks.items() if path.startswith("/stack.zarr/1/")]
    assert len(coarse) == 16
    assert max(coarse) <= 10
    assert not any(path.startswith("/stack.zarr/2/") for path in chunks)


def test_what_is_written_has_the_greys_of_the_finest_level(cluster, tmp_path, monkeypatch):
    """Means of noisy voxels differ less than the voxels do, which a window of theirs would clip."""
    noise = np.random.default_rng(0).normal(30_000, 6_000, (8, 300, 320)).astype(np.uint16)
    zarr.create_array(tmp_path / "array", shape=noise.shape, dtype="u2", chunks=(8, 16, 16))[:] = (
        noise
    )
    zarrmask.convert(tmp_path / "array", tmp_path / "image", scheduler=cluster, chunk=16)
    monkeypatch.setattr(reading, "SAMPLED_SIDE", 150)
    assert reading.has_coarser(open_source(tmp_path / "image"))
    options = {"scheduler": cluster, "window": "auto", "dtype": "uint8"}
    for name in ("array", "image"):
        zarrmask.convert(tmp_path / name, tmp_path / f"of-{name}", **options)
    of_array, of_image = (
        zarr.open_group(tmp_path / f"of-{name}").attrs["zarrmask"]["window"]
        for name in ("array", "image")
    )
    np.testing.assert_allclose(of_image, of_array, rtol=0.02)
    written = zarr.open_array(tmp_path / "of-image/0", mode="r")[:]
    assert ((written == 0) | (written == 255)).mean() < 0.02


@given(st.integers(1, 5000), st.integers(1, 600))
def test_blocks_are_spread(size, side):
    parts = reading.spread(size, side)
    places = [part.start // side for part in parts]
    assert all(part.start % side == 0 and part.stop <= size for part in parts)
    assert all(part.stop - part.start == min(side, size - part.start) for part in parts)
    blocks = -(-size // side)
    if blocks <= reading.PATCHES:
        assert places == list(range(blocks))
    else:
        assert len(places) == reading.PATCHES
        assert {*np.diff(places)} <= {blocks // 8, -(-blocks // 8)}


@pytest.mark.parametrize("scales", [True, False], ids=["scales", "no-scales"])
def test_levels_are_understood_or_left_alone(tmp_path, scales):
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    shapes = {"s0": (9, 64, 64), "flat": (9, 32, 32), "odd": (5, 20, 16), "s2": (3, 16, 16)}
    factors = {"s0": (1, 1, 1), "flat": (1, 2, 2), "odd": (2, 3.2, 4), "s2": (4, 4, 4)}
    datasets = []
    for name, shape in shapes.items():
        group.create_array(name, shape=shape, chunks=shape, dtype="u1")
        scale = [{"type": "scale", "scale": [7.0 * f for f in factors[name]]}]
        datasets.append({"path": name, **({"coordinateTransformations": scale} if scales else {})})
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    group.attrs["multiscales"] = [{"axes": axes, "datasets": datasets}]
    source = open_source(tmp_path / "a.zarr")
    if scales:
        assert source.coarsest(32, 32)[1] == 1
        assert source.coarsest(32, 32)[0].shape == (9, 32, 32)
        assert source.coarsest(20, 16)[0].shape == (9, 32, 32)
        assert source.coarsest(16, 16)[0].shape == (3, 16, 16)
        assert source.coarsest(16, 16)[1] == 4
    else:
        assert source.coarsest(20, 16) == (source, 1)
