from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from zarrmask.detection.heads import BoxPredictor, MaskPredictor, Pool, mask_targets
from zarrmask.detection.network import build_model
from zarrmask.detection.proposals import Anchors
from zarrmask.detection.weights import load_weights


def target(boxes, labels, shape):
    masks = torch.zeros((len(boxes), *shape), dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_losses_reach_every_weight(tiny, norm):
    torch.manual_seed(0)
    model = build_model(replace(tiny, resnet_norm=norm, fpn_norm="BN" if norm == "BN" else ""))
    images = [torch.randint(0, 256, (1, 64, 80), dtype=torch.uint8) for _ in range(2)]
    targets = [
        target([(4, 4, 40, 50), (30, 10, 70, 60)], [1, 2], (64, 80)),
        target([], [], (64, 80)),
    ]
    losses = model(images, targets)
    assert set(losses) == {
        *("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")
    }
    sum(losses.values()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name


def test_places_stay_exact_in_mixed_precision(tiny, monkeypatch):
    """bfloat16 has no odd number above 256."""
    model, box, chosen = build_model(tiny), [261, 5, 517, 301], []
    select = model.roi_heads.select_training_samples

    def spy(proposals, targets):
        found = select(proposals, targets)
        chosen.extend((proposals[0], found[0][0], found[3][0]))
        return found

    monkeypatch.setattr(model.roi_heads, "select_training_samples", spy)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([torch.zeros(1, 320, 544)], [target([box], [1], (320, 544))])
        sum(loss.float() for loss in losses.values()).backward()
    assert {one.dtype for one in chosen} == {torch.float32}
    assert (chosen[1] == torch.tensor(box)).all(1).any()  # what is sought is among the samples
    assert {one.dtype for one in model.rpn.anchor_generator.cell_anchors} == {torch.float32}
    assert model.roi_heads.mask_head[0][0].weight.grad is not None


def test_images_without_objects_train_too(tiny):
    losses = build_model(tiny)([torch.zeros(1, 64, 64)], [target([], [], (64, 64))])
    assert losses["loss_mask"] == losses["loss_box_reg"] == 0
    sum(losses.values()).backward()


def test_nothing_to_learn_from_is_no_loss(tiny):
    model = build_model(tiny)
    torch.nn.init.constant_(model.rpn.head.cls_logits.bias, torch.nan)  # no proposals
    losses = model([torch.zeros(1, 64, 64)], [target([], [], (64, 64))])
    assert losses["loss_classifier"] == losses["loss_box_reg"] == losses["loss_mask"] == 0


def test_losses_of_proposals_are_shared_by_as_many_anchors_as_are_asked_for(tiny):
    model, losses = build_model(tiny), []
    for asked in (10_000, 20_000):  # more than there are
        model.rpn.fg_bg_sampler.batch_size_per_image = asked
        losses.append(model([torch.ones(1, 64, 80)], [target([(4, 4, 40, 50)], [1], (64, 80))]))
    for name in ("loss_objectness", "loss_rpn_box_reg"):
        assert 0 < losses[1][name].item() == pytest.approx(losses[0][name].item() / 2)


@pytest.mark.parametrize("label", [1, 2])
def test_losses_are_least_for_the_class_that_the_weights_name(tiny, label):
    """Label 1 is detectron2's class 0, that is row 0 of every predictor."""
    model = build_model(tiny)
    row = label - 1
    with torch.no_grad():
        heads = model.roi_heads
        for layer in (*heads.box_predictor.children(), heads.mask_predictor.mask_fcn_logits):
            layer.weight.zero_()
        heads.box_predictor.cls_score.bias[row] = 10
        heads.box_predictor.bbox_pred.bias.copy_(
            torch.tensor([0.0 if i // 4 == row else 9.0 for i in range(8)])
        )
        heads.mask_predictor.mask_fcn_logits.bias.copy_(
            torch.tensor([9.0 if i == row else -9.0 for i in range(2)])
        )
        # Only the true box is left as a proposal: nothing of it is background.
        model.rpn.head.cls_logits.bias.fill_(torch.nan)
        image = torch.zeros(1, 64, 64)
        losses = [
            model([image], [target([(4, 8, 60, 56)], [truth], (64, 64))])
            for truth in (label, 3 - label)
        ]
    right, wrong = losses
    assert right["loss_classifier"] < 0.1 < 5 < wrong["loss_classifier"]
    assert right["loss_box_reg"] < 0.1 < 5 < wrong["loss_box_reg"]
    assert right["loss_mask"] < 0.3 < 5 < wrong["loss_mask"]


def test_background_is_last_in_the_weights_and_first_within():
    predictor = BoxPredictor(4, 2)
    with torch.no_grad():
        predictor.cls_score.bias.copy_(torch.tensor([1.0, 2.0, 9.0]))  # 9: background
        predictor.bbox_pred.bias.copy_(torch.arange(8.0))
    scores, deltas = predictor(torch.zeros(1, 4))
    assert scores[0].tolist() == [9, 1, 2]
    assert deltas[0, 4:].tolist() == list(range(8))
    assert predictor.bbox_pred.weight.shape == (8, 4)
    masks = MaskPredictor(4, 4, 2)(torch.zeros(1, 4, 14, 14))
    assert masks.shape == (1, 3, 28, 28)
    assert (masks[:, 0] == 0).all()


def test_anchors_are_detectron2_s(tiny):
    """Size by size, ratio height / width, not rounded; on fixed strides."""
    config = replace(
        tiny, rpn_levels=("p6",), anchor_sizes=((32.0, 64.0),), anchor_ratios=((0.5, 1.0),)
    )
    generator = Anchors(config)
    root = 2**0.5
    expected = [
        [-16 * root, -8 * root, 16 * root, 8 * root],
        [-16, -16, 16, 16],
        [-32 * root, -16 * root, 32 * root, 16 * root],
        [-32, -32, 32, 32],
    ]
    assert torch.allclose(generator.cell_anchors[0], torch.tensor(expected))
    images = type("Images", (), {"image_sizes": [(790, 800)]})
    (anchors,) = generator(images, [torch.zeros(1, 1, 13, 13)])
    assert anchors.shape == (13 * 13 * 4, 4)
    assert torch.allclose(anchors[4:8], torch.tensor(expected) + torch.tensor([64, 0, 64, 0]))
    assert torch.allclose(anchors[13 * 4 : 13 * 4 + 1, 1], torch.tensor([64 - 8 * root]))


@pytest.mark.parametrize(
    ("side", "level"),
    [(10, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (2000, 3)],
)
def test_boxes_are_pooled_from_the_level_of_their_size(side, level):
    names = ("p2", "p3", "p4", "p5")
    pool = Pool(names, 1, 2, "ROIAlignV2")
    features = {
        name: torch.full((1, 1, 2048 // 4 // 2**i, 2048 // 4 // 2**i), float(i))
        for i, name in enumerate(names)
    }
    pooled = pool(features, [torch.tensor([[8.0, 8, 8 + side, 8 + side]])], [(2048, 2048)])
    assert pooled.item() == pytest.approx(level)


def test_mask_targets_lie_on_pixel_centres():
    mask = torch.zeros(1, 40, 40, dtype=torch.uint8)
    mask[0, 6:20, 6:20] = 1
    boxes = torch.tensor([[6.0, 6, 20, 20], [0, 0, 28, 28]])
    targets = mask_targets(mask, torch.zeros(2, dtype=torch.int64), boxes, 14)
    assert targets[0].all()
    half = F.pad(torch.ones(7, 7), (3, 4, 3, 4))
    assert torch.equal(targets[1], half)


def test_one_feature_map_is_enough(tiny, tiny_weights):
    config = replace(tiny, rpn_levels=("p3",), roi_levels=("p3",), anchor_sizes=((32.0,),))
    model = build_model(config)
    load_weights(model, tiny_weights, "tiny")
    model.eval()
    with torch.inference_mode():
        (found,) = model([torch.zeros(1, 64, 64)])
    assert found["boxes"].shape[1] == 4


def test_numbers_that_are_none_are_dropped(tiny):
    model = build_model(tiny)
    with torch.no_grad():
        model.rpn.head.bbox_pred.bias.fill_(torch.nan)
        (boxes, *_), _ = model.eval().rpn(*_images_and_features(model, torch.rand(1, 3, 64, 64)))
        assert len(boxes) == 0
        assert len(model([torch.zeros(1, 64, 64)])[0]["boxes"]) == 0


def _images_and_features(model, tensor):
    images, _ = model.transform(list(tensor))
    return images, model.backbone(images.tensors)
