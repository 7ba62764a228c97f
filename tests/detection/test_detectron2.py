"""The user's own detectron2 as a backend.

`pytest -m detectron2` runs what needs it, and compares both backends at full size.
"""

import pickle
import sys
from dataclasses import replace
from textwrap import indent

import numpy as np
import pytest
import safetensors.torch
import tifffile
import torch
import yaml
from pretended import pretended
from torchvision.ops import box_iou

import zarrmask
from zarrmask.detection import load
from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import read_config
from zarrmask.detection.config_file import read_documents
from zarrmask.detection.config_keys import as_document
from zarrmask.detection.detections import union_mask
from zarrmask.detection.detectron2_backend import INSTALL
from zarrmask.detection.load import load_detector
from zarrmask.detection.network import build_model
from zarrmask.detection.protocol import detect_one
from zarrmask.detection.weights import load_weights, model_weights
from zarrmask.errors import CheckpointError, SettingsError
from zarrmask.phantom import simulate
from zarrmask.running.pipeline import foresee
from zarrmask.shipped import CONFIGS, DEFAULT_CHECKPOINT
from zarrmask.training.pupil import Pupil
from zarrmask.training.recipe import interpret_training

BACKENDS = ("torchvision", "detectron2")
LAST_LAYERS = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor")


def needs_detectron2(test):
    """Mark a test; what detectron2's imports warn of is not ours to mend."""
    return pytest.mark.detectron2(pytest.mark.filterwarnings("ignore")(test))


def test_where_it_is_missing_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(SettingsError, match="is not installed") as error:
        load_detector(DEFAULT_CHECKPOINT, backend="detectron2")
    assert INSTALL in str(error.value)
    assert "You do not need it" in str(error.value)


def test_one_that_cannot_be_imported_is_told_of(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("from PIL.Image import NO_SUCH_FILTER")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=r"cannot be imported \(ImportError: .*NO_SUCH_FILTER"):
        load_detector(DEFAULT_CHECKPOINT, backend="detectron2")


def test_it_has_full_precision_only():
    with pytest.raises(SettingsError, match="full only"):
        load_detector(DEFAULT_CHECKPOINT, backend="detectron2", precision="fast")


class Tempting:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self.marker)!r}, 'w')",)


def test_nothing_in_its_checkpoint_or_config_runs(tmp_path):
    """Both go through the same reader, whoever runs the network."""
    marker = tmp_path / "executed"
    pickled = tmp_path / "model.pkl"
    pickled.write_bytes(pickle.dumps({"model": Tempting(marker)}))
    config = tmp_path / "model.yaml"
    config.write_text(f"MODEL: !!python/object/apply:os.system ['touch {marker}']")
    for checkpoint, model in ((pickled, None), (DEFAULT_CHECKPOINT, config)):
        with pytest.raises(CheckpointError, match="othing in it was run"):
            load_detector(checkpoint, model, backend="detectron2")
    assert not marker.exists()


def test_what_it_alone_understands_is_refused_for_the_other(stack, tmp_path):
    config = tmp_path / "model.yaml"
    config.write_text(
        f"_BASE_: {CONFIGS / 'mask_rcnn_R_50_FPN.yaml'}\n"
        "MODEL: {ROI_MASK_HEAD: {CLS_AGNOSTIC_MASK: true}}\nINPUT: {MIN_SIZE_TEST: 123}\n"
    )
    named = {"config": config, "checkpoint": DEFAULT_CHECKPOINT}  # plans read no weights
    with pytest.raises(CheckpointError, match="CLS_AGNOSTIC_MASK"):
        foresee(stack, tmp_path / "out", **named)
    forecast, *_ = foresee(stack, tmp_path / "out", **named, backend="detectron2")
    assert forecast.network.input.min_size == 123


def save_random(path, config):
    """Write a checkpoint with random weights, such that features neither grow nor fade."""
    torch.manual_seed(1)
    weights = model_weights(build_model(config))
    weights["backbone.bottom_up.stem.conv1.weight"] /= 64
    for name, tensor in weights.items():
        if name.endswith(("conv3.norm.weight", "conv2.norm.weight")):
            tensor.fill_(0.5)
        elif name.endswith(tuple(f"{last}.weight" for last in LAST_LAYERS)):  # no near-ties
            torch.nn.init.normal_(tensor, std=2 / tensor[0].numel() ** 0.5)
    safetensors.torch.save_file({n: w.contiguous() for n, w in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def random_r50(standard, tmp_path_factory):
    """A checkpoint of full size without a config."""
    folder = tmp_path_factory.mktemp("random")
    return save_random(folder / "r50.safetensors", replace(standard, classes=2))


@pytest.fixture(scope="module")
def random_r18(standard, tmp_path_factory):
    """A checkpoint with its config, of a network that sees 320 pixels."""
    path = tmp_path_factory.mktemp("random") / "r18.safetensors"
    path.with_suffix(".yaml").write_text(
        f"_BASE_: {CONFIGS / 'mask_rcnn_R_50_FPN.yaml'}\n"
        "MODEL: {RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}, ROI_HEADS: {NUM_CLASSES: 1}}\n"
        "INPUT: {MIN_SIZE_TEST: 320, MAX_SIZE_TEST: 576}\n"
    )
    return save_random(path, replace(standard, depth=18, res2_channels=64, classes=1))


def drawn(seed, size):
    return simulate(np.random.default_rng([20261126, seed]), size, empty=0.0)[0]


def in_colour(image):
    return np.stack([image, image[::-1], 255 - image[:, ::-1]], -1)


def assert_backends_agree(checkpoint, *images, score=0.1, mirrored=False):
    """On slices of any size: boxes, scores and masks; gives how many were found on each."""
    ours, theirs = (
        load_detector(checkpoint, backend=b, score_threshold=score, mirrored=mirrored)
        for b in BACKENDS
    )
    counts = []
    assert ours.network_input == theirs.network_input
    assert ours.classes == theirs.classes
    for image in images:
        shape = image.shape[:2]
        seen = [ours.network_input.prepare(image)]
        (found,), (expected,) = (one.detect(seen, [shape]) for one in (ours, theirs))
        assert len(found) == len(expected)
        counts.append(len(found))
        if not len(expected):
            continue
        overlap = box_iou(torch.tensor(expected.boxes), torch.tensor(found.boxes)).numpy()
        match = overlap.argmax(1)
        assert overlap.max(1).min() > 0.99
        assert np.abs(found.scores[match] - expected.scores).max() < 1e-4
        assert (found.classes[match] == expected.classes).all()
        masks = [union_mask(each, shape) > 0 for each in (found, expected)]
        union_overlap = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        print(f"{checkpoint.stem}, {shape}: {len(found)} boxes, union IoU {union_overlap:.6f}")
        assert union_overlap >= 0.9999
    return counts


def built_by_detectron2(folder, config):
    """Save a small model of detectron2's own, whose config says more than the usual."""
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model as build

    (folder / "model.yaml").write_text(
        f"_BASE_: {CONFIGS / 'mask_rcnn_R_50_FPN.yaml'}\n"
        f"MODEL:\n  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64}}\n{config}"
    )
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "model.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    torch.save({"model": build(cfg).state_dict()}, folder / "model.pth")
    return folder / "model.pth"


@needs_detectron2
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"RPN.SMOOTH_L1_BETA": 0.1, "ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.5},
        {"RPN.BATCH_SIZE_PER_IMAGE": 4096},  # more than there are
        {"ROI_HEADS.BATCH_SIZE_PER_IMAGE": 7, "ROI_HEADS.IN_FEATURES": ["p2"]},
        {"RESNETS.NORM": "BN", "FPN.NORM": "GN", "BACKBONE.FREEZE_AT": 1},
    ],
)
def test_agree_on_losses_and_gradients(keys, tmp_path, monkeypatch):
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)  # with some random weights, norms over two images leave more than others
    # Both draw samples with it.
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n, device=device))
    sections = as_document({"FPN.OUT_CHANNELS": 32, "ROI_HEADS.NUM_CLASSES": 3, **keys})
    checkpoint = built_by_detectron2(tmp_path, indent(yaml.safe_dump(sections), "  "))
    theirs = load_detector(checkpoint, backend="detectron2").model.train()
    network, recipe = interpret_training(read_documents(tmp_path / "model.yaml"), "it")
    ours = Pupil(network, recipe).train()
    weights = read_checkpoint(checkpoint).tensors
    for name, weight in weights.items():
        if name.endswith(tuple(f"{last}.weight" for last in LAST_LAYERS)):
            torch.nn.init.normal_(weight, std=0.02)
    load_weights(ours.model, weights, "it")
    theirs.load_state_dict(weights, strict=False)
    images = [torch.rand(3, *shape) * 255 for shape in ((96, 128), (80, 90))]
    boxes = torch.tensor([(5.0, 6, 50, 60), (40, 20, 88, 78)]), torch.zeros(0, 4)
    targets, instances = [], []
    for image, of in zip(images, boxes, strict=True):
        shape, labels = tuple(image.shape[1:]), torch.arange(len(of))
        masks = torch.zeros((len(of), *shape), dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, of.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = 1
        targets.append({"boxes": of, "labels": labels + 1, "masks": masks})
        instance = Instances(shape, gt_boxes=Boxes(of), gt_classes=labels)
        instance.gt_masks = BitMasks(masks.bool())
        instances.append({"image": image, "instances": instance})
    with EventStorage():
        expected = theirs(instances)
    found = ours(images, targets)
    assert set(found) == set(expected)
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-4, abs=1e-7), name
    sum(expected.values()).backward()
    sum(found.values()).backward()
    with torch.no_grad():  # gradients instead of weights, to be compared by detectron2's names
        for model in (ours.model, theirs):
            for one in model.parameters():
                one.copy_(torch.zeros_like(one) if one.grad is None else one.grad)
    own = model_weights(ours.model)
    # Norms over batches of two tell apart what rounding leaves in the layers below.
    share = 0.05 if keys.get("RESNETS.NORM") == "BN" else 0.01
    for name, gradient in theirs.named_parameters():
        assert (own[name] - gradient).norm() <= share * gradient.norm() + 1e-9, name


@needs_detectron2
def test_begin_to_learn_from_weights_as_large(tmp_path):
    torch.manual_seed(0)
    theirs = read_checkpoint(built_by_detectron2(tmp_path, "")).tensors
    ours = model_weights(build_model(read_config(tmp_path / "model.yaml")))
    for name, weight in ours.items():
        if weight.numel() > 1:
            chance = 4 / weight.numel() ** 0.5  # of two spreads of so many draws
            assert weight.std().item() == pytest.approx(
                theirs[name].std().item(), rel=min(chance, 0.2), abs=1e-6
            ), name


@needs_detectron2
def test_agree_on_slices_of_any_size(random_r18):
    sizes = [(320, 320), (1100, 900), (2000, 1800), (120, 150), (200, 900), (1000, 180)]
    images = [np.zeros((400, 420), np.uint8)]
    images += [drawn(seed, size) for seed, size in enumerate(sizes)]
    assert min(assert_backends_agree(random_r18, *images)) > 0
    assert assert_backends_agree(random_r18, *images[:2], score=1.0) == [0, 0]


@needs_detectron2
def test_agree_where_each_slice_is_brought_to_one_contrast(random_r18, tmp_path):
    checkpoint = tmp_path / "even.safetensors"
    checkpoint.write_bytes(random_r18.read_bytes())
    content = (
        random_r18.with_suffix(".yaml").read_text()
        + "ZARRMASK: {EVEN_CONTRAST: true, LOOK_CLOSER: true}\n"
    )
    checkpoint.with_suffix(".yaml").write_text(content)
    assert min(assert_backends_agree(checkpoint, drawn(3, (400, 420)) // 3, drawn(4, (320, 320))))
    odd = drawn(5, (410, 333))  # cells that are evened are cut at its sides
    assert min(assert_backends_agree(checkpoint, odd // 3, mirrored=True))


@needs_detectron2
def test_agree_on_mirror_images(random_r18):
    images = (drawn(3, (400, 420)), drawn(4, (200, 900)), in_colour(drawn(5, (320, 320))))
    assert min(assert_backends_agree(random_r18, *images, mirrored=True)) > 0


@needs_detectron2
def test_other_heads_than_the_usual_are_not_asked_of_mirror_images(tmp_path):
    cascade = (
        "  ROI_HEADS: {NAME: CascadeROIHeads}\n  ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: true}\n"
    )
    model = built_by_detectron2(tmp_path, cascade)
    with pytest.raises(CheckpointError, match=r"StandardROIHeads, not CascadeROIHeads"):
        load_detector(model, backend="detectron2", mirrored=True)


@needs_detectron2
def test_agree_on_a_network_of_full_size(random_r50):
    image = drawn(7, (1400, 1400))
    counts = assert_backends_agree(random_r50, image, in_colour(image), in_colour(image[200:1100]))
    assert counts == [100, 100, 100]  # as many as there may be


@needs_detectron2
@pytest.mark.reference
def test_agree_on_the_reference_checkpoints(reference_checkpoint, shared):
    grey = (tifffile.imread(shared / "data" / "rolled_sheet_uint16.tif") >> 8).astype(np.uint8)
    counts = assert_backends_agree(reference_checkpoint, in_colour(grey), in_colour(grey[200:1100]))
    assert min(counts) > 0


@needs_detectron2
def test_is_what_the_default_predictor_finds(random_r50):
    from detectron2.engine import DefaultPredictor

    detector = load_detector(random_r50, backend="detectron2", score_threshold=0.1)
    config = detector.config.clone()
    config.MODEL.WEIGHTS, config.DATASETS.TEST = "", ()
    predict = DefaultPredictor(config)
    predict.model.load_state_dict(detector.model.state_dict())
    image = in_colour(drawn(8, (700, 900)))
    expected = predict(image)["instances"]
    found = detect_one(detector, image)
    assert len(found) == len(expected) > 0
    assert np.abs(found.boxes - expected.pred_boxes.tensor.numpy()).max() < 1e-3
    assert np.abs(found.scores - expected.scores.numpy()).max() < 1e-6
    union = union_mask(found, (700, 900)) > 0
    true_union = expected.pred_masks.any(0).numpy()
    assert (union & true_union).sum() / (union | true_union).sum() >= 0.9999


@needs_detectron2
def test_a_batch_gives_what_each_slice_gives_alone(random_r18):
    detector = load_detector(random_r18, backend="detectron2", score_threshold=0.1)
    images = [detector.network_input.prepare(drawn(seed, (400, 400))) for seed in (9, 10)]
    together = detector.detect(images, [(400, 400)] * 2)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image], [(400, 400)])
        assert len(alone) == len(found) > 0
        assert np.abs(alone.boxes - found.boxes).max() < 1e-2
        assert np.abs(alone.patches - found.patches).max() < 1e-4


@needs_detectron2
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("device", ["cuda:0", "mps"])
def test_detecting_stays_on_a_gpu(random_r18, monkeypatch, device, mirrored):
    """On one that is pretended; whose tensors know no inference mode where they are buffers."""
    options = {"backend": "detectron2", "score_threshold": 0.1, "mirrored": mirrored}
    image = drawn(11, (400, 500))
    here = load_detector(random_r18, **options)
    prepared = here.network_input.prepare(image)
    (expected,) = here.detect([prepared], [image.shape])
    monkeypatch.setattr(load, "find_device", torch.device)
    with pretended(monkeypatch), torch.no_grad():
        there = load_detector(random_r18, device=device, **options)
        (found,) = type(there).detect.__wrapped__(there, [prepared], [image.shape])
    assert len(found) == len(expected) > 0
    assert np.abs(found.boxes - expected.boxes).max() < 1e-2
    assert np.abs(found.patches - expected.patches).max() < 1e-4


@needs_detectron2
def test_its_own_architectures_run(tmp_path, slices):
    """One that zarrmask's network refuses by name."""
    other = "  ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: true}\n"
    model = built_by_detectron2(
        tmp_path, other + "INPUT: {MIN_SIZE_TEST: 100, MAX_SIZE_TEST: 200}\n"
    )
    with pytest.raises(CheckpointError, match="CLS_AGNOSTIC_BBOX_REG"):
        load_detector(model)
    detector = load_detector(model, backend="detectron2", score_threshold=0.0)
    assert detector.config.INPUT.MIN_SIZE_TEST == 100
    image = slices(130, 150)
    found = detect_one(detector, image)
    assert len(found)
    assert found.patches.shape[1:] == (28, 28)


@needs_detectron2
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MODEL: {NO_SUCH_KEY: 3}", "detectron2 does not take this config.*NO_SUCH_KEY"),
        ("MODEL: {MASK_ON: false}", "a model without masks"),
        ("MODEL: {BACKBONE: {NAME: nobody}}", "cannot build the model.*nobody"),
        ("MODEL: {META_ARCHITECTURE: RetinaNet}", "GeneralizedRCNN|cannot build"),
    ],
)
def test_configs_that_it_cannot_use(tmp_path, content, message):
    config = tmp_path / "model.yaml"
    config.write_text(f"_BASE_: {CONFIGS / 'mask_rcnn_R_50_FPN.yaml'}\n{content}\n")
    with pytest.raises(CheckpointError, match=message):
        load_detector(DEFAULT_CHECKPOINT, config, backend="detectron2")


@needs_detectron2
def test_weights_that_do_not_fit_are_named(tmp_path, random_r50):
    weights = dict(read_checkpoint(random_r50).tensors)
    weights["roi_heads.box_head.fc3.weight"] = weights.pop("roi_heads.box_head.fc2.weight")
    weights["backbone.fpn_lateral2.bias"] = torch.zeros(3)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(weights, path)
    config = CONFIGS / "mask_rcnn_R_50_FPN.yaml"
    with pytest.raises(CheckpointError) as error:
        load_detector(path, config, backend="detectron2")
    for name in ("fc3.weight", "fc2.weight", r"fpn_lateral2.bias (3,), expected (256,)"):
        assert name in str(error.value)


@needs_detectron2
def test_a_whole_run(stack, random_r18, tmp_path):
    """In processes of its own, which import detectron2 themselves."""
    ours, theirs = (
        zarrmask.run(stack, tmp_path / backend, checkpoint=random_r18, backend=backend, workers=1)
        for backend in BACKENDS
    )
    assert theirs["identity"]["settings"]["backend"] == "detectron2"
    assert "detectron2" in theirs["versions"]
    assert ours["voxels"]["kept"] > 0
    assert theirs["voxels"]["kept"] == pytest.approx(ours["voxels"]["kept"], rel=1e-3)
