import json
import pickle
from dataclasses import replace

import pytest
import torch

from zarrmask.detection.inspection import inspect_checkpoint
from zarrmask.detection.network import build_model
from zarrmask.detection.weights import model_weights, norm_counters
from zarrmask.errors import CheckpointError
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.storage.digest import sha256


def test_a_checkpoint_and_the_config_beside_it(checkpoint, tiny, tiny_weights):
    found = inspect_checkpoint(checkpoint)
    assert (found.format, found.iteration, found.author) == ("safetensors", None, None)
    assert (found.size, found.sha256) == (checkpoint.stat().st_size, sha256(checkpoint))
    assert found.model == tiny
    assert found.config == checkpoint.with_suffix(".yaml")
    numbers = sum(tensor.numel() for tensor in tiny_weights.values())
    assert (found.weights, found.parameters) == (len(tiny_weights), numbers)
    assert (found.weight_bytes, found.dtypes) == (4 * numbers, {"float32": len(tiny_weights)})
    assert not found.misfit
    assert found.passed_over == ()


def test_a_trainer_s_file_without_a_config(tmp_path, tiny):
    config = replace(tiny, depth=50, res2_channels=16, bottleneck_channels=4)
    weights = model_weights(build_model(config))
    besides = {"pixel_mean": torch.ones(3, 1, 1)}
    content = {"model": {**weights, **besides}, "iteration": 50_999, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "model.pth")
    found = inspect_checkpoint(tmp_path / "model.pth")
    assert (found.format, found.iteration, found.config) == ("torch", 50_999, None)
    assert (found.model.depth, found.model.res2_channels, found.model.classes) == (50, 16, 2)
    assert found.passed_over == ("pixel_mean",)
    assert not found.misfit
    lines = found.lines()
    assert lines["iteration"] == "50,999"
    assert lines["network"] == "Mask R-CNN, ResNet-50 with FPN"
    assert lines["channels"].startswith("stem 4, stages 16-32-64-128 (within 4-8-16-32), pyramid 8")
    assert lines["passed over"] == "pixel_mean"


def test_what_does_not_fit_is_named(checkpoint, tiny, tmp_path, as_yaml):
    other = tmp_path / "other.yaml"
    other.write_text(as_yaml(replace(tiny, classes=1, mask_convs=2, fpn_norm="BN")))
    found = inspect_checkpoint(checkpoint, other)
    assert found.config == other
    misfit = found.misfit
    assert "roi_heads.mask_head.mask_fcn2.weight" in misfit.missing
    assert "backbone.fpn_output2.bias" in misfit.unexpected
    assert misfit.reshaped["roi_heads.box_predictor.cls_score.weight"] == ((3, 16), (2, 16))
    record = json.loads(json.dumps(found.record()))
    assert record["fits"] is False
    assert record["misfit"]["reshaped"]["roi_heads.box_predictor.cls_score.weight"] == [
        [3, 16],
        [2, 16],
    ]
    assert "backbone.fpn_lateral2.norm.weight" in found.lines()[""]
    assert found.lines()["fits"] == "no:"


def test_anchors_that_shapes_do_not_tell_are_a_misfit(tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(DEFAULT_CHECKPOINT.read_bytes())
    found = inspect_checkpoint(alone)
    assert (found.model.depth, found.model.classes, found.sha256) == (18, 1, sha256(alone))
    name = "proposal_generator.rpn_head.objectness_logits.weight"
    assert found.misfit.reshaped[name] == ((6, 64, 1, 1), (3, 64, 1, 1))
    assert not found.misfit.missing
    assert not found.fits
    assert f"put it beside as {alone.stem}.yaml" in found.lines()[""]


def test_counters_are_summed_up(tmp_path, tiny):
    model = build_model(replace(tiny, resnet_norm="BN"))
    weights = {**model_weights(model), **norm_counters(model)}
    torch.save({"model": {**weights, "pixel_mean": torch.ones(3, 1, 1)}}, tmp_path / "model.pth")
    found = inspect_checkpoint(tmp_path / "model.pth")
    assert len(found.passed_over) == 21
    assert found.lines()["passed over"] == "pixel_mean, counters of 20 batch norms"


def test_the_shipped_checkpoint_fits():
    found = inspect_checkpoint(DEFAULT_CHECKPOINT)
    assert not found.misfit
    assert found.model.classes == 1
    assert set(found.dtypes) == {"float16", "float32"}
    assert found.record()["fits"] is True


class Tempting:
    def __reduce__(self):
        return print, ("executed",)


def test_what_is_no_mask_r_cnn(tmp_path, capsys):
    file = tmp_path / "model.pkl"
    file.write_bytes(pickle.dumps({"model": Tempting()}))
    with pytest.raises(CheckpointError, match=r"asks to import builtins\.print"):
        inspect_checkpoint(file)
    assert capsys.readouterr().out == ""
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not hold a detectron2 Mask R-CNN"):
        inspect_checkpoint(tmp_path / "other.pth")
    (tmp_path / "torn.pth").write_bytes((tmp_path / "other.pth").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"torn\.pth is not a checkpoint"):
        inspect_checkpoint(tmp_path / "torn.pth")
