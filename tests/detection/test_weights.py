import json
from dataclasses import replace

import pytest
import torch

from zarrmask.detection.network import build_model
from zarrmask.detection.shapes import infer_config
from zarrmask.detection.weights import load_weights, model_weights
from zarrmask.errors import CheckpointError


def test_weights_go_in_and_out_unchanged(tiny, tiny_weights):
    model = build_model(tiny)
    load_weights(model, tiny_weights, "tiny")
    out = model_weights(model)
    assert list(out) == list(tiny_weights)
    assert all(torch.equal(out[name], tiny_weights[name]) for name in out)


def test_what_old_files_carry_besides_is_passed_over(tiny, tiny_weights):
    besides = (
        *("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0"),
        "backbone.bottom_up.stem.conv1.norm.num_batches_tracked",
    )
    load_weights(build_model(tiny), {**tiny_weights, **dict.fromkeys(besides, torch.ones(1))}, "")


def test_batch_norm_has_the_names_of_the_frozen_one(tiny):
    names = [
        list(model_weights(build_model(replace(tiny, resnet_norm=norm))))
        for norm in ("FrozenBN", "BN")
    ]
    assert sorted(names[0]) == sorted(names[1])


def test_every_misfit_is_named(tiny, tiny_weights):
    weights = dict(tiny_weights)
    del weights["roi_heads.box_head.fc1.bias"]
    weights["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(81, 16)
    weights["roi_heads.keypoint_head.conv_fcn1.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as error:
        load_weights(build_model(tiny), weights, "model.pth")
    message = str(error.value)
    assert "model.pth does not fit its model config" in message
    assert "1 missing:\n    roi_heads.box_head.fc1.bias" in message
    assert "1 unexpected:\n    roi_heads.keypoint_head.conv_fcn1.weight" in message
    assert "1 of another shape:\n    roi_heads.box_predictor.cls_score.weight (81, 16)" in message
    assert "expected (3, 16)" in message


def test_a_long_list_is_cut(tiny):
    model = build_model(tiny)
    count = len(model_weights(model))
    with pytest.raises(CheckpointError) as error:
        load_weights(model, {"fc.weight": torch.zeros(1)}, "model.pth")
    assert f"{count} missing" in str(error.value)
    assert f"and {count - 10} more" in str(error.value)
    assert len(str(error.value).splitlines()) < 20


@pytest.mark.reference
@pytest.mark.parametrize("tag", ["r18", "r101"])
def test_names_and_shapes_are_detectron2_s(shared, tag):
    shapes = json.loads((shared / "detectron2-reference" / f"shapes_{tag}.json").read_text())
    weights = model_weights(build_model(infer_config(shapes, tag)))
    assert {name: list(value.shape) for name, value in weights.items()} == shapes
