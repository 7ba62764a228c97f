"""Networks made ready to predict: the same figures, sooner."""

import copy
import warnings
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from zarrmask.detection.detections import union_mask
from zarrmask.detection.devices import accelerators, find_device, has_bfloat16, repeatable
from zarrmask.detection.load import MaskRCNNDetector, load_detector
from zarrmask.detection.network import build_model
from zarrmask.detection.precision import (
    WIDE,
    fold_norms,
    in_bfloat16,
    rounded_in_turn,
    to_bfloat16,
)
from zarrmask.detection.protocol import detect_one
from zarrmask.errors import SettingsError
from zarrmask.phantom import simulate
from zarrmask.shipped import DEFAULT_CHECKPOINT

CPU = torch.device("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(CPU), reason="this processor does not compute in bfloat16"
)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("depth", [18, 50])
@torch.inference_mode()
def test_folded_norms_compute_the_same(tiny, norm, depth):
    torch.manual_seed(0)
    config = replace(tiny, depth=depth, res2_channels=16, resnet_norm=norm, fpn_norm="BN")
    backbone = build_model(config).backbone.eval()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.uniform_(0.5, 1.5)
    image = torch.rand(2, 3, 64, 96)
    expected = backbone(image)
    fold_norms(backbone)
    assert not [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]
    for name, features in backbone(image).items():
        assert features.dtype == torch.float32
        scale = expected[name].abs().max()
        assert (features - expected[name]).abs().max() < 1e-5 * scale


@torch.inference_mode()
def test_group_norms_stay(tiny):
    backbone = build_model(
        replace(tiny, stem_channels=32, res2_channels=32, resnet_norm="GN")
    ).backbone
    image = torch.rand(1, 3, 64, 64)
    expected = backbone.eval()(image)
    fold_norms(backbone)
    assert all(torch.equal(features, expected[name]) for name, features in backbone(image).items())


@needs_bfloat16
def test_fast_is_nearly_full(capsys):
    full, fast = (
        load_detector(DEFAULT_CHECKPOINT, precision=precision, score_threshold=0.1)
        for precision in ("full", "fast")
    )
    overlaps = []
    for seed in range(12):
        image, _ = simulate(np.random.default_rng([20261127, seed]), 480, empty=0.0)
        seen = [full.network_input.prepare(image)]
        (expected,), (found,) = (one.detect(seen, [image.shape]) for one in (full, fast))
        a, b = (union_mask(each, image.shape) > 0 for each in (expected, found))
        overlaps.append((a & b).sum() / max((a | b).sum(), 1))
    assert min(overlaps) < 1  # else it would be full
    assert np.median(overlaps) >= 0.9995


@given(st.integers(0, 99), st.sampled_from([(1, 1), (3, 3), (7, 7)]))
def test_rounding_in_turn_keeps_the_sum_of_each_kernel(seed, size):
    weights = torch.randn(5, 8, *size, generator=torch.Generator().manual_seed(seed))
    rounded = rounded_in_turn(weights)
    assert torch.equal(rounded, rounded.to(torch.bfloat16).float())
    step = 2.0**-7 * weights.abs()
    assert ((rounded - weights).abs() <= step.flatten(1).max(1).values.view(-1, 1, 1, 1)).all()
    lost = (rounded - weights).flatten(1).sum(1).abs()
    assert (lost <= 2.0**-8 * rounded.abs().flatten(1).max(1).values + 1e-5).all()


@needs_bfloat16
@torch.inference_mode()
def test_a_convolution_in_bfloat16_is_true_on_average():
    torch.manual_seed(0)
    part = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1, stride=2))
    nn.init.uniform_(part[0].bias, -4, 4)
    image = torch.rand(1, 32, 64, 64)
    expected = part(image)
    plain = copy.deepcopy(part).to(torch.bfloat16)(image.to(torch.bfloat16)).float()
    found = in_bfloat16(part)(image.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16
    off, before = ((each.float() - expected).mean((2, 3)).abs() for each in (found, plain))
    assert off.mean() < before.mean() / 4
    assert off.max() < 1e-3


@pytest.mark.parametrize("width", [64, 256])
def test_narrow_layers_that_choose_boxes_stay_in_float32(tiny, width):
    model = build_model(replace(tiny, fpn_channels=width, box_fc_channels=width)).eval()
    to_bfloat16(model)
    chosen = torch.bfloat16 if width >= WIDE else torch.float32
    for part, dtype in (
        (model.backbone, torch.bfloat16),
        (model.roi_heads.mask_head, torch.bfloat16),
        (model.rpn.head.conv, chosen),
        (model.roi_heads.box_head, chosen),
        (model.rpn.head.cls_logits, torch.float32),
        (model.roi_heads.box_predictor, torch.float32),
        (model.roi_heads.mask_predictor, torch.float32),
    ):
        assert {weights.dtype for weights in part.parameters()} == {dtype}


@needs_bfloat16
def test_fast_gives_floats_of_the_same_kind(tiny, tiny_weights, slices):
    detector = MaskRCNNDetector(
        replace(tiny, score_threshold=0.3), tiny_weights, "tiny", CPU, precision="fast"
    )
    image = slices(64, 80)
    found = detect_one(detector, image)
    assert len(found)
    assert {found.boxes.dtype, found.scores.dtype, found.patches.dtype} == {np.dtype("f4")}


def test_fast_is_refused_where_it_would_be_something_else(tiny, tiny_weights, monkeypatch):
    monkeypatch.setattr("zarrmask.detection.load.has_bfloat16", lambda device: False)
    with pytest.raises(SettingsError, match=r"bfloat16, which cpu .* take --precision full"):
        MaskRCNNDetector(tiny, tiny_weights, "tiny", CPU, precision="fast")
    MaskRCNNDetector(tiny, tiny_weights, "tiny", CPU)


def test_devices_by_name():
    assert find_device("cpu") == CPU
    assert find_device("auto").type == (accelerators()[0][1] if accelerators() else "cpu")[:4]
    assert accelerators("cpu") == []
    for kind in ("cuda", "mps"):
        if not accelerators(kind):
            with pytest.raises(SettingsError, match=f"--device {kind}.*--device auto"):
                find_device(kind)


def test_who_leaves_does_not_change_how_others_compute():
    def flags():
        return torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32

    usual, cuda = flags(), torch.device("cuda")
    one, other = repeatable(cuda), repeatable(cuda)
    with one:
        assert flags() == (True, False)
        other.__enter__()
    assert flags() == (True, False)
    other.__exit__(None, None, None)
    assert flags() == usual
    with repeatable(CPU):
        assert flags() == usual


def test_loading_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_detector(DEFAULT_CHECKPOINT, device="auto")
