from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from zarrmask.detection.config import _FIXED, fields
from zarrmask.detection.load import MaskRCNNDetector, load_detector
from zarrmask.errors import CheckpointError


def as_yaml(config) -> str:
    """Write a config out in detectron2's keys."""
    document: dict = {}
    values = {path: value for path, (_, value) in _FIXED.items()}
    values |= {field.metadata["path"]: getattr(config, field.name) for field in fields(config)}
    for path, value in values.items():
        *sections, key = path.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        if value is not None:
            place[key] = value
    return yaml.dump(document)


@pytest.fixture
def checkpoint(tmp_path, tiny, tiny_weights):
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(tiny_weights, path)
    (tmp_path / "tiny.yaml").write_text(as_yaml(tiny))
    return path


@pytest.fixture
def detector(tiny, tiny_weights):
    return MaskRCNNDetector(replace(tiny, score_threshold=0.3), tiny_weights, "tiny")


def detect(detector, *slices):
    return detector.detect(
        [detector.network_input.prepare(image) for image in slices],
        [image.shape[:2] for image in slices],
    )


def same(a, b, tolerance=1e-4):
    assert len(a) == len(b) > 0
    assert np.abs(a.scores - b.scores).max() < tolerance
    assert np.abs(a.boxes - b.boxes).max() < tolerance * 1000
    assert np.abs(a.patches - b.patches).max() < tolerance * 10
    assert (a.classes == b.classes).all()


def test_the_config_beside_the_checkpoint_is_taken(checkpoint, tiny):
    detector = load_detector(checkpoint)
    assert detector.config == replace(tiny, score_threshold=0.05)
    assert (detector.network_input.min_size, detector.network_input.max_size) == (64, 96)
    assert load_detector(checkpoint, score_threshold=0.4).config.score_threshold == 0.4


def test_a_given_config_goes_first(checkpoint, tiny, tmp_path):
    given = tmp_path / "given.yaml"
    given.write_text(as_yaml(replace(tiny, min_size=80, score_threshold=0.2)))
    config = load_detector(checkpoint, given).config
    assert (config.min_size, config.score_threshold) == (80, 0.2)
    assert load_detector(checkpoint, given, score_threshold=0.1).config.score_threshold == 0.1


def test_without_a_config_the_shapes_tell(checkpoint):
    checkpoint.with_suffix(".yaml").unlink()
    config = load_detector(checkpoint).config
    assert (config.depth, config.classes, config.min_size) == (18, 2, 800)


def test_a_config_that_does_not_fit(checkpoint, tiny):
    checkpoint.with_suffix(".yaml").write_text(as_yaml(replace(tiny, classes=1)))
    with pytest.raises(CheckpointError, match=r"cls_score\.weight \(3, 16\), expected \(2, 16\)"):
        load_detector(checkpoint)


def test_what_a_detection_holds(detector, slices):
    (found,) = detect(detector, slices(90, 120))
    count = len(found)
    assert 1 < count <= 100
    assert (found.boxes.shape, found.boxes.dtype) == ((count, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((count,), np.float32)
    assert (found.classes.shape, found.classes.dtype) == ((count,), np.int64)
    assert (found.patches.shape, found.patches.dtype) == ((count, 28, 28), np.float32)
    assert (np.diff(found.scores) <= 0).all()
    assert found.scores.min() > 0.3
    assert set(found.classes) == {0, 1}
    assert 0 <= found.patches.min() <= found.patches.max() <= 1
    assert (found.boxes >= 0).all()
    assert (found.boxes[:, 2:] <= [120, 90]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


@pytest.mark.parametrize("shape", [(20, 30), (64, 64), (64, 97), (200, 150), (60, 400), (1, 1)])
def test_slices_of_any_size(detector, slices, shape):
    (found,) = detect(detector, slices(*shape))
    assert (found.boxes[:, 2:] <= [shape[1], shape[0]]).all()


def test_boxes_are_in_pixels_of_the_slice(detector, slices):
    image = detector.network_input.prepare(slices(64, 64))
    small, large = detector.detect([image, image], [(64, 64), (640, 1280)])
    same(small, replace(large, boxes=large.boxes / np.float32([20, 10, 20, 10])))


def test_a_batch_gives_what_each_slice_gives_alone(detector, slices):
    first, second = slices(64, 64), slices(150, 150)
    together = detect(detector, first, second)
    same(together[0], *detect(detector, first))
    same(together[1], *detect(detector, second))


def test_slices_of_different_shape_in_a_batch(detector, slices):
    """All are padded to one size; the padding lies outside and is never found."""
    tall, wide = detect(detector, slices(96, 64), slices(64, 96))
    assert (tall.boxes[:, 2:] <= [64, 96]).all()
    assert (wide.boxes[:, 2:] <= [96, 64]).all()


def test_grey_is_as_three_equal_channels(detector, slices):
    grey = slices(100, 130)
    same(*detect(detector, grey), *detect(detector, np.repeat(grey[..., None], 3, 2)), 1e-6)


def test_rgb_networks_get_the_channels_in_their_order(tiny, tiny_weights, slices):
    grey = slices(64, 64)
    bgr = np.stack([grey, grey // 2, 255 - grey], -1)
    weights = dict(tiny_weights)
    stem = "backbone.bottom_up.stem.conv1.weight"
    weights[stem] = weights[stem].flip(1)
    config = replace(tiny, score_threshold=0.3)
    flipped = replace(config, channel_order="RGB", pixel_mean=config.pixel_mean[::-1])
    (expected,) = detect(MaskRCNNDetector(config, tiny_weights, ""), bgr)
    same(*detect(MaskRCNNDetector(flipped, weights, ""), bgr), expected)


def test_nothing_found(tiny, tiny_weights, slices):
    detector = MaskRCNNDetector(replace(tiny, score_threshold=1.0), tiny_weights, "tiny")
    nothing, again = detect(detector, slices(50, 60), slices(64, 64))
    assert len(nothing) == len(again) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.patches.shape == (0, 28, 28)


def test_at_most_so_many(tiny, tiny_weights, slices):
    image = slices(64, 64)
    config = replace(tiny, score_threshold=0.0, nms=1.0)
    (found,) = detect(MaskRCNNDetector(config, tiny_weights, "tiny"), image)
    assert len(found) == 100
    config = replace(config, detections_per_image=7)
    (fewer,) = detect(MaskRCNNDetector(config, tiny_weights, "tiny"), image)
    same(fewer, replace(found, **{n: getattr(found, n)[:7] for n in vars(found)}))


def test_a_higher_threshold_finds_what_scores_above_it(tiny, tiny_weights, slices):
    image = slices(64, 64)

    def at(score):
        config = replace(tiny, score_threshold=score)
        return detect(MaskRCNNDetector(config, tiny_weights, "tiny"), image)[0]

    every = at(0.05)
    score = float(every.scores[len(every) // 2])
    same(every.above(score), at(score))


def test_detecting_leaves_no_gradients(detector, slices):
    detect(detector, slices(64, 64))
    assert not torch.is_grad_enabled() or all(
        weight.grad is None for weight in detector.model.parameters()
    )
