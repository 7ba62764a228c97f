from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.detections import union_mask
from zarrmask.detection.files import guessed
from zarrmask.detection.inspection import inspect_checkpoint
from zarrmask.detection.load import MaskRCNNDetector, load_detector
from zarrmask.detection.network import build_model
from zarrmask.detection.weights import model_weights
from zarrmask.errors import CheckpointError

CPU = torch.device("cpu")


@pytest.fixture
def detector(tiny, tiny_weights):
    return MaskRCNNDetector(replace(tiny, score_threshold=0.3), tiny_weights, "tiny", CPU)


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
    assert detector.config == tiny
    assert detector.model.roi_heads.score_thresh == 0.05
    assert (detector.network_input.min_size, detector.network_input.max_size) == (64, 96)
    assert load_detector(checkpoint, score_threshold=0.4).config.score_threshold == 0.4


@pytest.mark.parametrize("name", ["model_0000119.pth", "model_best.pth", "model_final.pth"])
@pytest.mark.parametrize("config", ["model.yaml", "config.yaml"])
def test_checkpoints_of_a_training_share_its_config(checkpoint, tiny, name, config):
    mine = checkpoint.rename(checkpoint.with_name(name))
    assert guessed(mine)
    checkpoint.with_suffix(".yaml").rename(checkpoint.with_name(config))
    assert load_detector(mine).config == tiny
    assert guessed(mine) is None
    assert guessed(mine.rename(mine.with_name("another.pth")))


def test_weights_that_are_no_numbers_are_refused(checkpoint):
    content = {n: one.clone() for n, one in read_checkpoint(checkpoint).tensors.items()}
    content["roi_heads.mask_head.predictor.bias"].fill_(float("nan"))
    save_file(content, checkpoint)
    for backend in ("torchvision", "detectron2"):  # before anybody asks whether that is installed
        problem = r"1 of its \d+ tensors .*mask_head\.predictor\.bias"
        with pytest.raises(CheckpointError, match=problem):
            load_detector(checkpoint, backend=backend)
    found = inspect_checkpoint(checkpoint)
    assert found.record()["fits"] is found.fits is False
    assert found.lines()["fits"] == "no:"
    assert "predictor.bias" in found.lines()[""]


@pytest.mark.parametrize(
    "changes",
    [
        {"stride_in_1x1": False, "depth": 50},
        {"anchor_sizes": ((16.0,),)},
        {"anchor_ratios": ((0.4, 1.1, 2.5),)},
        {"rpn_box_weights": (2.0, 2.0, 2.0, 2.0)},
        {"rpn_pre_nms": 5},
        {"rpn_post_nms": 5},
        {"rpn_nms": 0.2},
        {"nms": 0.1},
        {"detections_per_image": 1},
        {"score_threshold": 0.6},
        {"box_weights": (4.0, 4.0, 2.0, 2.0)},
        {"box_pool_samples": 1},
        {"box_pool_type": "ROIAlign"},
        {"mask_pool_samples": 1},
        {"mask_pool_type": "ROIAlign"},
        {"mask_pool_size": 10},
        {"channel_order": "RGB"},
        {"pixel_mean": (90.0, 116.28, 123.675)},
        {"pixel_std": (2.0, 1.0, 1.0)},
        {"even_contrast": True},
        {"min_size": 96},
        {"max_size": 70},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_config_says_changes_what_is_found(tiny, slices, changes):
    torch.manual_seed(0)
    plain = replace(tiny, score_threshold=0.3, depth=changes.get("depth", 18))
    if plain.is_bottleneck:
        plain = replace(plain, res2_channels=16, bottleneck_channels=4)
    weights = model_weights(build_model(plain))
    for name, tensor in weights.items():
        if tensor.ndim > 1 and ("roi_heads" in name or "rpn_head" in name):
            torch.nn.init.normal_(tensor, std=1 / tensor[0].numel() ** 0.5)
    weights["backbone.bottom_up.stem.conv1.weight"] /= 64
    image = np.stack([slices(70, 88) for _ in range(3)], -1)
    before, after = (
        detect(MaskRCNNDetector(config, weights, "tiny", CPU), image)[0]
        for config in (plain, replace(plain, **changes))
    )
    assert len(before) > 1
    assert not (
        len(before) == len(after)
        and np.allclose(before.boxes, after.boxes)
        and np.allclose(before.scores, after.scores)
        and before.patches.shape == after.patches.shape
        and np.allclose(before.patches, after.patches)
    )


def test_a_given_config_goes_first(checkpoint, tiny, tmp_path, as_yaml):
    given = tmp_path / "given.yaml"
    given.write_text(as_yaml(replace(tiny, min_size=80, score_threshold=0.2)))
    config = load_detector(checkpoint, given).config
    assert (config.min_size, config.score_threshold) == (80, 0.2)
    assert load_detector(checkpoint, given, score_threshold=0.1).config.score_threshold == 0.1


def test_without_a_config_the_shapes_tell(checkpoint):
    checkpoint.with_suffix(".yaml").unlink()
    config = load_detector(checkpoint).config
    assert (config.depth, config.classes, config.min_size) == (18, 2, 800)


def test_a_config_that_does_not_fit(checkpoint, tiny, as_yaml):
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


def test_a_slice_is_found_the_same_in_any_company(tiny, tiny_weights, slices):
    """To the bit: what a worker's other slices are at that moment must not matter."""
    config = replace(tiny, score_threshold=0.3)
    detector = MaskRCNNDetector(config, tiny_weights, "tiny", CPU, batch=3)
    images = [slices(150, 150), slices(160, 150), slices(64, 64), 255 - slices(150, 150)]
    alone = [detect(detector, image)[0] for image in images]
    assert all(len(found) for found in alone)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0], [2, 0]):
        batch = detect(detector, *(images[n] for n in order))
        for n, found in zip(order, batch, strict=True):
            for name in ("boxes", "scores", "classes", "patches"):
                np.testing.assert_array_equal(getattr(found, name), getattr(alone[n], name))


def test_slices_of_different_shape_in_a_batch_are_found_as_alone(detector, slices):
    """Padding all to one size would change what is found."""
    shapes = [(96, 64), (64, 96), (64, 90), (20, 2000), (64, 64), (90, 64)]
    batch = [slices(*shape) for shape in shapes]
    for image, found in zip(batch, detect(detector, *batch), strict=True):
        same(found, *detect(detector, image))
    assert detector.detect([], []) == []


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((20, 2000), (6, 640)),
        ((2000, 20), (640, 6)),
        ((20, 40), (64, 128)),
        ((30, 33), (64, 70)),
        ((700, 500), (90, 64)),
        ((3000, 2999), (64, 64)),
    ],
    ids=lambda shape: f"{shape[0]}x{shape[1]}",
)
def test_flat_tall_small_and_large_slices(tiny, tiny_weights, slices, shape, seen):
    """What the network finds on the slice at its own size, times the ratio of the sizes."""
    detector = MaskRCNNDetector(
        replace(tiny, max_size=640, score_threshold=0.05), tiny_weights, "tiny", CPU
    )
    image = slices(*shape)
    assert detector.network_input.shape(*shape) == seen
    small = Image.fromarray(image).resize(seen[::-1], Image.Resampling.BILINEAR)
    with torch.inference_mode():
        (expected,) = detector.model([torch.tensor(np.array(small))[None]])
    (found,) = detect(detector, image)
    ratio = np.array([shape[1] / seen[1], shape[0] / seen[0]] * 2)
    assert len(found) == len(expected["boxes"]) > 0
    assert np.allclose(found.boxes, expected["boxes"].numpy() * ratio, rtol=1e-4, atol=1e-3)
    mask = union_mask(found, shape) > 0
    rows, columns = np.nonzero(mask)
    assert mask.any()
    assert found.boxes[:, 0].min() <= columns.min() + 0.5
    assert found.boxes[:, 1].min() <= rows.min() + 0.5
    assert columns.max() + 0.5 <= found.boxes[:, 2].max()
    assert rows.max() + 0.5 <= found.boxes[:, 3].max()


@pytest.mark.parametrize("suffix", [".pth", ".yaml"])
def test_depth_50_is_built_and_loaded(tiny, tmp_path, slices, as_yaml, suffix):
    """From the shapes of its weights, and from its config, to the same detector."""
    torch.manual_seed(1)
    config = replace(
        tiny, depth=50, res2_channels=16, bottleneck_channels=4, min_size=800, max_size=1333
    )
    weights = model_weights(build_model(config))
    assert sum(name.endswith("conv3.weight") for name in weights) == 3 + 4 + 6 + 3
    torch.save({"model": weights}, tmp_path / "r50.pth")
    if suffix == ".yaml":
        (tmp_path / "r50.yaml").write_text(as_yaml(config))
    loaded = load_detector(tmp_path / "r50.pth", score_threshold=0.3)
    assert loaded.config == replace(config, score_threshold=0.3)
    small = replace(config, score_threshold=0.0, min_size=64, max_size=96)
    (found,) = detect(MaskRCNNDetector(small, weights, "r50", CPU), slices(64, 70))
    assert len(found) > 0


@pytest.mark.parametrize("in_1x1", [True, False])
def test_the_stride_of_a_bottleneck_is_where_the_config_says(tiny, in_1x1):
    widths = {"res2_channels": 16, "bottleneck_channels": 4}
    config = replace(tiny, depth=50, stride_in_1x1=in_1x1, **widths)
    block = build_model(config).backbone.body.res3[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))[:: 1 if in_1x1 else -1]


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
    (expected,) = detect(MaskRCNNDetector(config, tiny_weights, "", CPU), bgr)
    same(*detect(MaskRCNNDetector(flipped, weights, "", CPU), bgr), expected)


def test_nothing_found(tiny, tiny_weights, slices):
    detector = MaskRCNNDetector(replace(tiny, score_threshold=1.0), tiny_weights, "tiny", CPU)
    nothing, again = detect(detector, slices(50, 60), slices(64, 64))
    assert len(nothing) == len(again) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.patches.shape == (0, 28, 28)


def test_at_most_so_many(tiny, tiny_weights, slices):
    image = slices(64, 64)
    config = replace(tiny, score_threshold=0.0, nms=1.0)
    (found,) = detect(MaskRCNNDetector(config, tiny_weights, "tiny", CPU), image)
    assert len(found) == 100
    config = replace(config, detections_per_image=7)
    (fewer,) = detect(MaskRCNNDetector(config, tiny_weights, "tiny", CPU), image)
    same(fewer, replace(found, **{n: getattr(found, n)[:7] for n in vars(found)}))


def test_a_higher_threshold_finds_what_scores_above_it(tiny, tiny_weights, slices):
    image = slices(64, 64)

    def at(score):
        config = replace(tiny, score_threshold=score)
        return detect(MaskRCNNDetector(config, tiny_weights, "tiny", CPU), image)[0]

    every = at(0.05)
    score = float(every.scores[len(every) // 2])
    same(every.above(score), at(score))


def test_detecting_keeps_nothing_for_gradients(detector, slices):
    seen = []
    note = lambda *_: seen.append(torch.is_inference_mode_enabled())  # noqa: E731
    with detector.model.backbone.register_forward_hook(note):
        detect(detector, slices(64, 64))
    assert seen == [True]
