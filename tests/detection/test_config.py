import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from zarrmask.detection.config import interpret, read_config
from zarrmask.detection.network import build_model
from zarrmask.detection.shapes import STANDARD_FPN, infer_config
from zarrmask.detection.weights import model_weights, norm_counters
from zarrmask.errors import CheckpointError

CONFIGS = Path(__file__).parents[2] / "configs"


class CfgNode(dict):
    """Stands in for detectron2's class of this name: PyYAML dumps it with the same tags."""

    def __init__(self, content, shared):
        super().__init__(
            {k: CfgNode(v, shared) if isinstance(v, dict) else v for k, v in content.items()}
        )
        self.__dict__.update(
            __immutable__=True,
            __deprecated_keys__=shared[0],
            __renamed_keys__=shared[1],
            __new_allowed__=False,
        )


CfgNode.__module__ = "detectron2.config.config"


def dumped(content) -> str:
    """Write a config as `yaml.dump(cfg)` does, with detectron2's tags, anchors and aliases."""
    return yaml.dump(CfgNode(content, (set(), {})))


NOTEBOOK = {
    "CUDNN_BENCHMARK": False,
    "DATALOADER": {"NUM_WORKERS": 2, "SAMPLER_TRAIN": "TrainingSampler"},
    "DATASETS": {"TRAIN": ("my_dataset_train",), "TEST": ("my_dataset_val",)},
    "INPUT": {
        "CROP": {"ENABLED": False, "SIZE": [0.9, 0.9], "TYPE": "relative_range"},
        "FORMAT": "BGR",
        "MAX_SIZE_TEST": 1333,
        "MIN_SIZE_TEST": 512,
        "MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    },
    "MODEL": {
        "ANCHOR_GENERATOR": {
            "ANGLES": [[-90, 0, 90]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            "NAME": "DefaultAnchorGenerator",
            "OFFSET": 0.0,
            "SIZES": [[32], [64], [128], [256], [512]],
        },
        "BACKBONE": {"FREEZE_AT": 2, "NAME": "build_resnet_fpn_backbone"},
        "DEVICE": "cuda",
        "FPN": {
            "FUSE_TYPE": "sum",
            "IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "NORM": "",
            "OUT_CHANNELS": 256,
        },
        "KEYPOINT_ON": False,
        "LOAD_PROPOSALS": False,
        "MASK_ON": True,
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "PIXEL_MEAN": [103.53, 116.28, 123.675],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "PROPOSAL_GENERATOR": {"MIN_SIZE": 0, "NAME": "RPN"},
        "RESNETS": {
            "DEFORM_MODULATED": False,
            "DEFORM_NUM_GROUPS": 1,
            "DEFORM_ON_PER_STAGE": [False, False, False, False],
            "DEPTH": 101,
            "NORM": "FrozenBN",
            "NUM_GROUPS": 1,
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            "RES2_OUT_CHANNELS": 256,
            "RES5_DILATION": 1,
            "STEM_OUT_CHANNELS": 64,
            "STRIDE_IN_1X1": True,
            "WIDTH_PER_GROUP": 64,
        },
        "RETINANET": {"NUM_CLASSES": 80, "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"]},
        "ROI_BOX_CASCADE_HEAD": {"IOUS": (0.5, 0.6, 0.7)},
        "ROI_BOX_HEAD": {
            "BBOX_REG_LOSS_TYPE": "smooth_l1",
            "BBOX_REG_LOSS_WEIGHT": 1.0,
            "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
            "CLS_AGNOSTIC_BBOX_REG": False,
            "CONV_DIM": 256,
            "FC_DIM": 1024,
            "NAME": "FastRCNNConvFCHead",
            "NORM": "",
            "NUM_CONV": 0,
            "NUM_FC": 2,
            "POOLER_RESOLUTION": 7,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
            "SMOOTH_L1_BETA": 0.0,
            "TRAIN_ON_PRED_BOXES": False,
        },
        "ROI_HEADS": {
            "BATCH_SIZE_PER_IMAGE": 512,
            "IN_FEATURES": ["p2", "p3", "p4", "p5"],
            "IOU_LABELS": [0, 1],
            "IOU_THRESHOLDS": [0.5],
            "NAME": "StandardROIHeads",
            "NMS_THRESH_TEST": 0.5,
            "NUM_CLASSES": 1,
            "POSITIVE_FRACTION": 0.25,
            "PROPOSAL_APPEND_GT": True,
            "SCORE_THRESH_TEST": 0.05,
        },
        "ROI_MASK_HEAD": {
            "CLS_AGNOSTIC_MASK": False,
            "CONV_DIM": 256,
            "NAME": "MaskRCNNConvUpsampleHead",
            "NORM": "",
            "NUM_CONV": 4,
            "POOLER_RESOLUTION": 14,
            "POOLER_SAMPLING_RATIO": 0,
            "POOLER_TYPE": "ROIAlignV2",
        },
        "RPN": {
            "BATCH_SIZE_PER_IMAGE": 256,
            "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
            "BOUNDARY_THRESH": -1,
            "CONV_DIMS": [-1],
            "HEAD_NAME": "StandardRPNHead",
            "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
            "IOU_LABELS": [0, -1, 1],
            "NMS_THRESH": 0.7,
            "POST_NMS_TOPK_TEST": 1000,
            "POST_NMS_TOPK_TRAIN": 1000,
            "PRE_NMS_TOPK_TEST": 1000,
            "PRE_NMS_TOPK_TRAIN": 2000,
        },
        "WEIGHTS": "output/model_final.pth",
    },
    "OUTPUT_DIR": "./output",
    "SOLVER": {"BASE_LR": 0.00025, "STEPS": [], "AMP": {"ENABLED": False}},
    "TEST": {"AUG": {"ENABLED": False, "FLIP": True}, "DETECTIONS_PER_IMAGE": 100},
    "VERSION": 2,
}


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_config_that_the_notebook_dumped(write, standard):
    text = dumped(NOTEBOOK)
    for mark in ("!!python/object/new:detectron2.config.config.CfgNode", "&id001", "*id001"):
        assert mark in text
    for mark in ("!!python/tuple", "!!set", "dictitems:", "state:"):
        assert mark in text
    expected = replace(standard, depth=101, classes=1, score_threshold=0.05, min_size=512)
    assert read_config(write(text)) == expected
    assert read_config(write(yaml.safe_dump(NOTEBOOK))) == expected  # plain, with lists for tuples


@pytest.mark.parametrize("depth", [50, 101])
def test_the_configs_that_ship(standard, depth):
    shipped = read_config(CONFIGS / f"mask_rcnn_R_{depth}_FPN.yaml")
    assert shipped == replace(standard, depth=depth, classes=1)
    assert shipped.score_threshold is None


def test_a_config_with_its_base(write, standard):
    write(yaml.safe_dump(yaml.safe_load((CONFIGS / "mask_rcnn_R_50_FPN.yaml").read_text())), "b")
    write("_BASE_: ../b\nMODEL: {ROI_HEADS: {NUM_CLASSES: 7}}", "sub/middle.yaml")
    top = write(
        "_BASE_: sub/middle.yaml\n"
        "MODEL:\n"
        "  WEIGHTS: detectron2://ImageNetPretrained/MSRA/R-101.pkl\n"
        "  RESNETS: {DEPTH: 101}\n"
        '  ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: "(20.0, 20.0, 10.0, 10.0)"}\n'
        "  ROI_HEADS: {SCORE_THRESH_TEST: 0.3}\n"
        "SOLVER: {STEPS: (210000, 250000), MAX_ITER: 270000}\n"
    )
    assert read_config(top) == replace(
        standard,
        depth=101,
        classes=7,
        score_threshold=0.3,
        box_weights=(20.0, 20.0, 10.0, 10.0),
    )


@pytest.mark.parametrize(
    ("base", "advice"),
    [
        ("../Base-RCNN-FPN.yaml", "which does not exist. Put that file there"),
        ("https://example.org/Base-RCNN-FPN.yaml", "Download that file"),
        ("detectron2://Base-RCNN-FPN.yaml", "Download that file"),
        ("config.yaml", "round in a circle"),
        ("[1, 2]", "only a file beside it"),
    ],
)
def test_a_base_that_cannot_be_read(write, base, advice):
    with pytest.raises(CheckpointError, match=advice):
        read_config(write(f"_BASE_: {base}\nMODEL: {{}}\n"))


def test_every_unsupported_key_is_named(write):
    content = {
        "MODEL": {
            "META_ARCHITECTURE": "RetinaNet",
            "BACKBONE": {"NAME": "build_swint_fpn_backbone"},
            "RESNETS": {"DEPTH": 152, "NUM_GROUPS": 32, "DEFORM_ON_PER_STAGE": [False, True]},
            "ROI_HEADS": {"SCORE_TRESH_TEST": 0.2, "NUM_CLASSES": "one"},
            "ROI_BOX_HEAD": {"NUM_CONV": 4, "CLS_AGNOSTIC_BBOX_REG": True, "POOLER_TYPE": "Pool"},
            "ROI_MASK_HEAD": {"CLS_AGNOSTIC_MASK": True},
            "PIXEL_MEAN": [1, 2],
            "ANCHOR_GENERATOR": {"SIZES": []},
            "FPN": [],
        },
        "INPUT": {"FORMAT": "L", "MIN_SIZE_TEST": -1},
        "TEST": {"AUG": {"ENABLED": True}},
    }
    with pytest.raises(CheckpointError) as error:
        read_config(write(yaml.safe_dump(content)))
    for key in (
        *("META_ARCHITECTURE is 'RetinaNet', must be 'GeneralizedRCNN'", "MASK_ON is False"),
        *("BACKBONE.NAME", "DEPTH is 152, must be 18 or 34 or 50 or 101", "NUM_GROUPS is 32"),
        *("DEFORM_ON_PER_STAGE", "ROI_HEADS.SCORE_TRESH_TEST is not a key", "NUM_CLASSES is 'one'"),
        *("NUM_CONV is 4", "CLS_AGNOSTIC_BBOX_REG is True", "POOLER_TYPE", "CLS_AGNOSTIC_MASK"),
        *("PIXEL_MEAN", "SIZES", "INPUT.FORMAT", "MIN_SIZE_TEST is -1", "TEST.AUG.ENABLED is True"),
        *("MODEL.FPN is ()", "must be a section"),
    ):
        assert key in str(error.value)


def nested(path: str, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


# detectron2 0.6's keys, as far as they concern a Mask R-CNN, each with a value that is not its
# default there nor that of mask_rcnn_R_50_FPN.
HONOURED = {
    "MODEL.PIXEL_MEAN": (1.0, 2.0, 3.0),
    "MODEL.PIXEL_STD": (57.0, 57.0, 58.0),
    "MODEL.RESNETS.DEPTH": 101,
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 128,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FPN.OUT_CHANNELS": 128,
    "MODEL.FPN.NORM": "GN",
    "MODEL.ANCHOR_GENERATOR.SIZES": ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": ((1.0,),),
    "MODEL.RPN.IN_FEATURES": ("p2", "p3", "p4", "p6", "p5"),
    "MODEL.RPN.BBOX_REG_WEIGHTS": (2.0, 2.0, 1.0, 1.0),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 500,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 300,
    "MODEL.RPN.NMS_THRESH": 0.6,
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "MODEL.ROI_HEADS.IN_FEATURES": ("p3", "p4"),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.2,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 512,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": (20.0, 20.0, 10.0, 10.0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlign",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 2,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 128,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 28,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": 2,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlign",
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 2000,
    "INPUT.FORMAT": "RGB",
    "TEST.DETECTIONS_PER_IMAGE": 50,
    "ZARRMASK.EVEN_CONTRAST": True,
    "ZARRMASK.LOOK_CLOSER": True,
}
REFUSED = {
    "VERSION": 1,
    "MODEL.META_ARCHITECTURE": "PanopticFPN",
    "MODEL.MASK_ON": False,
    "MODEL.KEYPOINT_ON": True,
    "MODEL.LOAD_PROPOSALS": True,
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.DEPTH": 152,
    "MODEL.RESNETS.OUT_FEATURES": ("res3", "res4", "res5"),
    "MODEL.RESNETS.NUM_GROUPS": 32,
    "MODEL.RESNETS.RES5_DILATION": 2,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": (False, True, True, True),
    "MODEL.RESNETS.NORM": "LN",
    "MODEL.FPN.IN_FEATURES": ("res3", "res4", "res5"),
    "MODEL.FPN.FUSE_TYPE": "avg",
    "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": 8,
    "MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator",
    "MODEL.ANCHOR_GENERATOR.OFFSET": 0.5,
    "MODEL.RPN.HEAD_NAME": "MyHead",
    "MODEL.RPN.CONV_DIMS": (256, 256),
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.NAME": "MyHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True,
    "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
    "MODEL.ROI_MASK_HEAD.NORM": "GN",
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIPool",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True,
    "INPUT.FORMAT": "L",
    "TEST.AUG.ENABLED": True,
    # Not detectron2's: it would refuse them too.
    "MODEL.ROI_HEADS.USE_TRAIN_FOR_EVAL_BOXES": True,
    "MODEL.MASK_THRESHOLD": 0.4,
    "MODEL.ROI_HEAD.NUM_CLASSES": 3,
    "MODEL.BACKBONE.DEPTH": 50,
    "INPUT.MIN_SIZE_TSET": 512,
    "INPUTS.MIN_SIZE_TEST": 512,
    "TEST.SCORE_THRESH": 0.3,
    "TEST.AUG.ENABLE": True,
}
HARMLESS = {
    "CUDNN_BENCHMARK": True,
    "DATALOADER.NUM_WORKERS": 9,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": 5,
    "FLOAT32_PRECISION": "high",
    "GLOBAL.HACK": 2.0,
    "OUTPUT_DIR": "elsewhere",
    "SEED": 3,
    "SOLVER.MAX_ITER": 1,
    "VIS_PERIOD": 7,
    "MODEL.DEVICE": "tpu",
    "MODEL.WEIGHTS": "somewhere.pkl",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.DEFORM_MODULATED": True,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": 2,
    "MODEL.ANCHOR_GENERATOR.ANGLES": ((0,),),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou",
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 2.0,
    "MODEL.RPN.BOUNDARY_THRESH": 10,
    "MODEL.RPN.IOU_LABELS": (0, 1),
    "MODEL.RPN.IOU_THRESHOLDS": (0.4,),
    "MODEL.RPN.LOSS_WEIGHT": 2.0,
    "MODEL.RPN.POSITIVE_FRACTION": 0.2,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 7,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 7,
    "MODEL.RPN.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.IOU_LABELS": (0, 1),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": (0.6,),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.5,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 7,  # of convolutions, of which there are none
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True,
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5,),
    "MODEL.ROI_KEYPOINT_HEAD.NAME": "Unknown",
    "MODEL.SEM_SEG_HEAD.NAME": "Unknown",
    "MODEL.PANOPTIC_FPN.COMBINE.ENABLED": False,
    "MODEL.RETINANET.NUM_CLASSES": 7,
    "INPUT.CROP.ENABLED": True,
    "INPUT.MASK_FORMAT": "bitmask",
    "INPUT.MAX_SIZE_TRAIN": 600,
    "INPUT.MIN_SIZE_TRAIN": (300,),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
    "INPUT.RANDOM_FLIP": "none",
    "TEST.AUG.FLIP": False,
    "TEST.AUG.MAX_SIZE": 100,
    "TEST.AUG.MIN_SIZES": (100,),
    "TEST.EVAL_PERIOD": 5,
    "TEST.EXPECTED_RESULTS": (),
    "TEST.KEYPOINT_OKS_SIGMAS": (),
    "TEST.PRECISE_BN.ENABLED": True,
    "ZARRMASK.AVERAGE": 0.99,
    "ZARRMASK.HELP": True,
    "ZARRMASK.KEEP": 1,
    "ZARRMASK.OPTIMIZER": "AdamW",
}


@pytest.mark.parametrize("path", HONOURED)
def test_a_key_that_is_honoured(standard, path):
    config = interpret([nested(path, HONOURED[path]), STANDARD_FPN], "config")
    (name,) = (field.name for field in fields(config) if field.metadata["path"] == path)
    assert config == replace(standard, **{name: HONOURED[path]}) != standard


def test_every_field_is_among_the_honoured_keys(standard):
    assert {field.metadata["path"] for field in fields(standard)} == set(HONOURED)


@pytest.mark.parametrize("path", REFUSED)
def test_a_key_that_is_refused_by_name(path):
    with pytest.raises(CheckpointError) as error:
        interpret([nested(path, REFUSED[path]), STANDARD_FPN], "config")
    (problem,) = str(error.value).splitlines()[1:]
    named = problem.split()[0]
    assert path == named or path.startswith(f"{named}.")


def test_a_number_that_no_float_holds_is_refused():
    path = "MODEL.ROI_HEADS.NMS_THRESH_TEST"
    with pytest.raises(CheckpointError, match=f"{path} is 1000.*must be a number from 0 to 1"):
        interpret([nested(path, 10**400), STANDARD_FPN], "config")


@pytest.mark.parametrize("path", HARMLESS)
def test_a_key_that_changes_nothing(standard, path):
    assert interpret([nested(path, HARMLESS[path]), STANDARD_FPN], "config") == standard


def test_tuples_with_their_python_tag(write, standard):
    path = write(yaml.dump(STANDARD_FPN, Dumper=yaml.Dumper))
    assert "!!python/tuple" in path.read_text()
    assert read_config(path) == standard


def test_one_feature_map_for_the_heads(standard):
    single = {
        "MODEL": {
            "RPN": {"IN_FEATURES": ("p3",)},
            "ROI_HEADS": {"IN_FEATURES": ("p3",)},
            "ANCHOR_GENERATOR": {"SIZES": (32, 64), "ASPECT_RATIOS": (0.5, 2)},
        }
    }
    config = interpret([single, STANDARD_FPN], "single")
    assert config.rpn_levels == config.roi_levels == ("p3",)
    assert config.anchor_sizes == ((32.0, 64.0),)
    assert config.anchors_per_place == 4


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"RPN": {"IN_FEATURES": ("p2", "p3")}}, "5 lists of 1, 1, 1, 1, 1 numbers for 2 feature"),
        ({"ANCHOR_GENERATOR": {"SIZES": ((1,), (2,), (3,), (4,), (5, 6))}}, "must be lists of one"),
        ({"ROI_HEADS": {"IN_FEATURES": ("p2", "p4"), "NAME": "StandardROIHeads"}}, "neighbouring"),
        ({"ROI_HEADS": {"IN_FEATURES": ("res4",), "NAME": "StandardROIHeads"}}, "p2, p3, p4, p5"),
        ({"RESNETS": {"RES2_OUT_CHANNELS": 6}}, "multiple of 4"),
        ({"RESNETS": {"NORM": "GN", "WIDTH_PER_GROUP": 16}}, "64, 256, 16 channels; GN wants"),
        ({"FPN": {"NORM": "GN", "OUT_CHANNELS": 48}}, "FPN.NORM is GN, for 48 channels"),
        ({"RESNETS": {"NORM": ""}}, "'FrozenBN' or"),
    ],
)
def test_contradictions(section, message):
    with pytest.raises(CheckpointError, match=message):
        interpret([{"MODEL": section}, STANDARD_FPN], "contradiction")


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/object/new:os.system ['touch {marker}']",
        "!!python/object/new:subprocess.Popen {{args: [touch, '{marker}']}}",
        "!!python/object/new:detectron2.config.config.CfgNode ['touch {marker}']",
        "!!python/object:os.system {{}}",
        "!!python/name:os.system ''",
        "!!python/module:antigravity ''",
        "!!python/object/apply:eval [\"open('{marker}', 'w')\"]",
        "!!python/object/apply:eval ['[x for x in (1, 2)]']",
        "!!binary [1]",
        "!unknown x",
        "&me [*me]",
    ],
)
@pytest.mark.parametrize("place", ["{tag}", "MODEL: {{ROI_HEADS: {{NUM_CLASSES: {tag}}}}}"])
def test_no_tag_is_executed(write, tmp_path, tag, place):
    marker = tmp_path / "executed"
    path = write(place.format(tag=tag.format(marker=marker)))
    with pytest.raises(CheckpointError) as error:
        read_config(path)
    assert "nothing in it was run" in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "MODEL: " + "[" * 5000,
        "MODEL: " + "{a: " * 5000,
        "",
        "just a text",
        "[1, 2]",
        "MODEL: {",
        "MODEL: 5",
        "? [a]\n: b",
        "MODEL: " + "9" * 10_000,
        "!!python/object/new:x.CfgNode {dictitems: 3}",
        "VERSION: 1\nMODEL: {}",
        "MODEL: {ROI_HEADS: {NUM_CLASSES: '" + "(" * 3000 + "'}}",
        "\x00",
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_config(write, text):
    with pytest.raises(CheckpointError, match=r"config\.yaml"):
        read_config(write(text))


def test_nested_aliases_are_not_multiplied(write):
    bomb = ["a0: &a0 {x: 1}"]
    bomb += [
        f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 30)
    ]
    bomb += ["MODEL: {ROI_HEADS: {NUM_CLASSES: *a29, IN_FEATURES: [*a29]}, RPN: *a29}"]
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"NUM_CLASSES[\s\S]*IN_FEATURES"):
        read_config(write("\n".join(bomb)))
    assert time.perf_counter() - start < 5


def test_nested_merge_keys_are_refused(write):
    bomb = ["a0: &a0 {x: 1}"]
    bomb += [
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 1}}" for i in range(1, 30)
    ]
    with pytest.raises(CheckpointError, match="merge keys"):
        read_config(write("\n".join(bomb)))


def test_a_file_too_large_for_a_config(write):
    with pytest.raises(CheckpointError, match="a model config has at most"):
        read_config(write("#" * 300_000))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match="Is a directory"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 18, "bottleneck_channels": 4},
        {"depth": 34, "bottleneck_channels": 4, "fpn_norm": "BN"},
        {"depth": 50, "bottleneck_channels": 5, "fpn_norm": "GN", "res2_channels": 16},
        {"depth": 101, "bottleneck_channels": 4, "box_fc_count": 3, "box_pool_size": 5},
        {"bottleneck_channels": 4, "mask_convs": 0, "classes": 5},
    ],
)
def test_the_shapes_tell_the_config(tiny, change):
    config = replace(tiny, min_size=800, max_size=1333, fpn_channels=32, **change)
    weights = model_weights(build_model(config))
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    assert infer_config(shapes, "weights") == config


def test_what_counts_batches_tells_norms_that_learn(tiny):
    """Those of a ResNet that is to be trained on; frozen ones have no such counters."""
    sizes = {"min_size": 800, "max_size": 1333, "fpn_channels": 32, "bottleneck_channels": 4}
    config = replace(tiny, resnet_norm="BN", **sizes)
    model = build_model(config)
    tensors = {**model_weights(model), **norm_counters(model)}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert infer_config(shapes, "weights") == config


def test_shapes_of_something_else(tiny_weights):
    with pytest.raises(CheckpointError, match=r"res2\.0\.conv1\.weight is not among its 1 tensors"):
        infer_config({"fc.weight": (3, 4)}, "weights")
    shapes = {name: tuple(value.shape) for name, value in tiny_weights.items()}
    shapes["proposal_generator.rpn_head.objectness_logits.weight"] = (9, 8, 1, 1)
    with pytest.raises(CheckpointError, match="9 anchors a place"):
        infer_config(shapes, "weights")
    shapes["backbone.bottom_up.res4.2.conv1.weight"] = (8, 8, 3, 3)
    with pytest.raises(CheckpointError, match="DEPTH is '3 blocks in res4'"):
        infer_config(shapes, "weights")


def test_no_two_fields_read_one_key(standard):
    paths = [declared.metadata["path"] for declared in fields(standard)]
    assert len(set(paths)) == len(paths)


def test_a_config_without_a_network_is_told_apart():
    training = [{"SOLVER": {"BASE_LR": 0.1}}]
    with pytest.raises(CheckpointError, match=r"describes no network.*leave --config out"):
        interpret(training, "it")
    with pytest.raises(CheckpointError) as refusal:
        interpret([{"MODEL": {"MASK_ON": False}}, STANDARD_FPN], "it")
    assert "describes no network" not in str(refusal.value)
