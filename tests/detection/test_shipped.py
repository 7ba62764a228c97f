"""The checkpoint that ships with the project, on slices that it was not trained on."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from zarrmask.detection.detections import union_mask
from zarrmask.detection.inputs import to_8bit
from zarrmask.detection.load import load_detector
from zarrmask.phantom import Phantom, simulate

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "phantom_r18.safetensors"


@pytest.fixture(scope="module")
def find():
    """Give a function from a slice (h, w) to its undilated union mask, bool (h, w)."""
    detector = load_detector(CHECKPOINT, score_threshold=0.1)

    def mask_of(image):
        seen = detector.network_input.prepare(to_8bit(image))
        return union_mask(detector.detect([seen], [image.shape])[0], image.shape) > 0

    return mask_of


def iou(found, truth):
    return (found & truth).sum() / max((found | truth).sum(), 1)


def test_is_small_and_has_its_config_and_card():
    assert CHECKPOINT.stat().st_size < 40e6
    assert CHECKPOINT.with_suffix(".yaml").is_file()
    assert "simulated" in CHECKPOINT.with_name("MODEL_CARD.md").read_text()


def test_finds_simulated_scrolls(find):
    found = []
    for seed in range(20):
        image, pieces = simulate(np.random.default_rng([20261122, seed]), 320, empty=0.0)
        found.append(iou(find(image), np.any(pieces, axis=0)))
    assert np.median(found) > 0.9
    assert np.mean(found) > 0.85


def test_follows_a_phantom(find):
    phantom = Phantom((31, 300, 340), seed=11)
    for z in (12, 15, 18):
        image, mask = phantom.slice(z)
        assert iou(find(image), mask) > 0.9


def test_finds_nothing_in_air(find):
    noise = np.random.default_rng(0).normal(100, 4, (300, 340)).astype(np.uint8)
    assert not find(noise).any()
    assert not find(np.zeros((300, 340), np.uint8)).any()


def test_finds_no_scroll_at_a_phantoms_end(find):
    image, mask = Phantom((31, 300, 340), seed=11).slice(0)
    assert not mask.any()
    assert find(image).mean() < 0.05


@pytest.fixture(scope="module")
def shared():
    if "ZARRMASK_SHARED" not in os.environ:
        pytest.skip("ZARRMASK_SHARED does not name the folder with the real slices")
    return Path(os.environ["ZARRMASK_SHARED"]) / "data"


@pytest.mark.real
def test_real_slice(find, shared):
    image = cv2.imread(str(shared / "07000.jpg"), cv2.IMREAD_GRAYSCALE)
    truth = cv2.imread(str(shared / "07000_mask.png"), cv2.IMREAD_GRAYSCALE) > 0
    assert iou(find(image), truth) > 0.9


@pytest.mark.real
def test_real_film(find, shared):
    film = cv2.VideoCapture(str(shared / "scroll1.mp4"))
    frames = []
    while len(frames) < 300:
        more, frame = film.read()
        assert more
        frames.append(frame[..., 0])
    truth = cv2.imread(str(shared / "scroll1_frame150_mask.png"), cv2.IMREAD_GRAYSCALE) > 0
    assert iou(find(frames[150]), truth) > 0.9
    for number in range(0, 300, 60):  # the scroll hardly changes over the film
        assert iou(find(frames[number]), truth) > 0.85
