"""A run on real slices: the scroll is kept, the case is gone."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def traced(shared):
    """Frame 150, traced by hand."""
    path = shared / "data" / "scroll1_frame150_mask.png"
    return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0


def test_the_detected_mask_is_the_traced_one(real_run, traced):
    out, _ = real_run
    keyframes = zarr.open_group(out / "keyframes.zarr", mode="r")
    position = np.abs(keyframes["z"][:] - 150).argmin()  # they place themselves
    found = keyframes["mask"][position] > 0
    assert (found & traced).sum() / (found | traced).sum() >= 0.8


def test_the_scroll_is_kept_and_the_case_is_gone(real_run, traced):
    out, record = real_run
    kept = zarr.open_array(out / "mask.zarr/0", mode="r")[30] > 0
    assert (kept & traced).sum() / traced.sum() > 0.99
    assert kept[:20, :200].sum() + kept[-20:, :200].sum() == 0  # the case in two corners
    assert record["keyframes"]["without_detection"] == []


def test_every_slice_is_masked_exactly(real_run):
    out, _ = real_run
    volume, mask, masked = (
        zarr.open_array(out / f"{name}.zarr/0", mode="r") for name in ("volume", "mask", "masked")
    )
    for z in range(volume.shape[0]):
        expected = np.where(mask[z] == 255, volume[z], 0)
        np.testing.assert_array_equal(masked[z], expected)


def test_simulated_slices_are_held_against_real_ones(tmp_path):
    program = Path(__file__).parents[1] / "benchmarks" / "looks.py"
    done = subprocess.run(
        [sys.executable, program, tmp_path, "--slices", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 2 + 7
    assert "nan" not in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "side_by_side.png",
        "histograms.png",
        "spectra.png",
    }
