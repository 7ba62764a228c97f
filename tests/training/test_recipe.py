from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from zarrmask.detection.config import interpret, read_config
from zarrmask.detection.config_file import read_documents
from zarrmask.detection.shapes import STANDARD_FPN
from zarrmask.errors import CheckpointError
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.training.lesson import begin
from zarrmask.training.optimizer import clip_gradients, parameter_groups
from zarrmask.training.recipe import Recipe, interpret_training, recipe_keys
from zarrmask.training.state import save_config

CONFIGS = Path(__file__).parents[2] / "configs"
BESIDE_WEIGHTS = DEFAULT_CHECKPOINT.with_suffix(".yaml")
FULL = {  # sections of a config that detectron2 dumped, whole, as it has them by default
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "ASPECT_RATIO_GROUPING": True,
        "SAMPLER_TRAIN": "TrainingSampler",
        "REPEAT_THRESHOLD": 0.0,
        "REPEAT_SQRT": True,
        "FILTER_EMPTY_ANNOTATIONS": True,
    },
    "DATASETS": {
        "TRAIN": ("mine",),
        "PROPOSAL_FILES_TRAIN": (),
        "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
        "TEST": (),
        "PROPOSAL_FILES_TEST": (),
        "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_TRAIN_SAMPLING": "choice",
        "MAX_SIZE_TRAIN": 1333,
        "MIN_SIZE_TEST": 800,
        "MAX_SIZE_TEST": 1333,
        "RANDOM_FLIP": "horizontal",
        "CROP": {"ENABLED": False, "TYPE": "relative_range", "SIZE": (0.9, 0.9)},
        "FORMAT": "BGR",
        "MASK_FORMAT": "polygon",
    },
    "SOLVER": {
        "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
        "MAX_ITER": 40000,
        "BASE_LR": 0.001,
        "BASE_LR_END": 0.0,
        "MOMENTUM": 0.9,
        "NESTEROV": False,
        "WEIGHT_DECAY": 0.0001,
        "WEIGHT_DECAY_NORM": 0.0,
        "WEIGHT_DECAY_BIAS": None,
        "GAMMA": 0.1,
        "STEPS": (30000,),
        "NUM_DECAYS": 3,
        "WARMUP_FACTOR": 0.001,
        "WARMUP_ITERS": 1000,
        "WARMUP_METHOD": "linear",
        "RESCALE_INTERVAL": False,
        "CHECKPOINT_PERIOD": 5000,
        "IMS_PER_BATCH": 16,
        "REFERENCE_WORLD_SIZE": 0,
        "BIAS_LR_FACTOR": 1.0,
        "CLIP_GRADIENTS": {
            "ENABLED": False,
            "CLIP_TYPE": "value",
            "CLIP_VALUE": 1.0,
            "NORM_TYPE": 2.0,
        },
        "AMP": {"ENABLED": False},
    },
    "TEST": {
        "EXPECTED_RESULTS": (),
        "EVAL_PERIOD": 0,
        "KEYPOINT_OKS_SIGMAS": (),
        "DETECTIONS_PER_IMAGE": 100,
        "AUG": {"ENABLED": False, "MIN_SIZES": (400,), "MAX_SIZE": 4000, "FLIP": True},
        "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
    },
    "MODEL": {
        "DEVICE": "cuda",
        "WEIGHTS": "",
        "BACKBONE": {"FREEZE_AT": 2},
        "RETINANET": {"NUM_CLASSES": 80},
        "SEM_SEG_HEAD": {"NUM_CLASSES": 54},
        "PANOPTIC_FPN": {"INSTANCE_LOSS_WEIGHT": 1.0},
        "ROI_KEYPOINT_HEAD": {"NUM_KEYPOINTS": 17},
        "ROI_BOX_CASCADE_HEAD": {"IOUS": (0.5, 0.6, 0.7)},
        "ROI_BOX_HEAD": {"USE_FED_LOSS": False, "FED_LOSS_NUM_CLASSES": 50},
    },
    "OUTPUT_DIR": "./output",
    "SEED": -1,
    "CUDNN_BENCHMARK": False,
    "FLOAT32_PRECISION": "",
    "VIS_PERIOD": 0,
    "GLOBAL": {"HACK": 1.0},
    "VERSION": 2,
}


def read_training(config):
    return interpret_training(read_documents(config), str(config))


def test_recipe_is_read_from_the_config(config):
    network, recipe = read_training(config)
    assert network == read_config(config)
    assert (recipe.batch, recipe.short, recipe.limit) == (2, (64, 72), 90)
    assert (recipe.optimizer, recipe.clip_value, recipe.mixed) == ("AdamW", 5.0, True)


@pytest.mark.parametrize(
    "config", [*CONFIGS.glob("*_r18.yaml"), *CONFIGS.glob("mask_rcnn_*.yaml"), BESIDE_WEIGHTS]
)
def test_every_shipped_config_is_a_recipe(config):
    network, recipe = read_training(config)
    assert network == read_config(config)
    assert recipe.batch > 0


def test_the_first_config_decides(config):
    documents = [*read_documents(CONFIGS / "finetune.yaml"), *read_documents(config)]
    _, recipe = interpret_training(documents, "")
    assert (recipe.batch, recipe.steps, recipe.short) == (3, (), (64, 72))


def test_recipe_names_every_bad_value_and_unknown_key():
    solver = {
        "IMS_PER_BATCH": "none",
        "BASE_LR": -1,
        "LEARNING_RATE": 3,
        "RESCALE_INTERVAL": True,
        "CLIP_GRADIENTS": {"CLIPTYPE": "norm"},
    }
    document = {
        "SOLVER": solver,
        "INPUT": {"RANDOM_FLIPS": "both", "CROP": {"SIZE": (0.5,)}},
        "MODEL": {"RPN": {"NMS_TRESH": 0.5}, "ROI_HEADS": {"NMS_THRESH_TEST": 2}},
        "SLOVER": {"BASE_LR": 0.5},
    }
    with pytest.raises(CheckpointError) as error:
        interpret_training([document, STANDARD_FPN], "mine.yaml")
    message = str(error.value)
    assert message.startswith("mine.yaml")
    for problem in (
        "SOLVER.IMS_PER_BATCH is 'none', must be a whole number of at least 1",
        "SOLVER.BASE_LR is -1, must be a number above 0",
        "SOLVER.LEARNING_RATE is not a key",
        "SOLVER.RESCALE_INTERVAL is True, must be False",
        "SOLVER.CLIP_GRADIENTS.CLIPTYPE is not a key",
        "INPUT.RANDOM_FLIPS is not a key",
        "INPUT.CROP.SIZE is (0.5,), must be two numbers above 0",
        "MODEL.RPN.NMS_TRESH is not a key",
        "MODEL.ROI_HEADS.NMS_THRESH_TEST is 2, must be a number from 0 to 1",
        "SLOVER is not a key",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"SCORE_THRESH_TEST": 0.9}, "SCORE_THRESH_TEST is not a key"),
        ({"MODEL": {"ROI_HEADS": {"BATCH_SIZE_PER_IMGAE": 3}}}, "BATCH_SIZE_PER_IMGAE is not"),
        ({"TEST": {"DETECTIONS_PER_IMGAE": 3}}, "TEST.DETECTIONS_PER_IMGAE is not a key"),
        ({"TEST": {"PRECISE_BN": {"ENABLED": True}}}, "TEST.PRECISE_BN.ENABLED is True, must be"),
        ({"DATALOADER": {"NUM_WORKER": 1}}, "DATALOADER.NUM_WORKER is not a key"),
        (
            {"DATALOADER": {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler"}},
            "DATALOADER.SAMPLER_TRAIN is 'RepeatFactorTrainingSampler', must be 'TrainingSampler'",
        ),
        ({"DATASETS": {"TRIAN": ("mine",)}}, "DATASETS.TRIAN is not a key"),
    ],
)
def test_a_key_that_is_not_understood_is_refused_wherever_it_stands(document, problem):
    with pytest.raises(CheckpointError, match=problem):
        interpret_training([document, STANDARD_FPN], "")


def test_all_that_detectron2_dumps_is_taken():
    network, recipe = interpret_training([FULL, STANDARD_FPN], "")
    assert network == interpret([STANDARD_FPN], "")
    assert recipe.batch == 16


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"INPUT": {"MIN_SIZE_TRAIN_SAMPLING": "range"}}, "the least size and the greatest"),
        ({"SOLVER": {"NESTEROV": True, "MOMENTUM": 0.0}}, "SOLVER.NESTEROV"),
        ({"INPUT": {"CROP": {"ENABLED": True, "SIZE": (2, 2)}}}, "parts of the image"),
        (
            {"INPUT": {"CROP": {"ENABLED": True, "TYPE": "absolute_range", "SIZE": (600, 400)}}},
            "the least side and the greatest",
        ),
        (
            {"INPUT": {"CROP": {"ENABLED": True, "TYPE": "absolute", "SIZE": (2.5, 2)}}},
            "whole pixels",
        ),
        (
            {
                "SOLVER": {
                    "LR_SCHEDULER_NAME": "WarmupCosineLR",
                    "BASE_LR": 0.1,
                    "BASE_LR_END": 0.2,
                }
            },
            "BASE_LR_END",
        ),
    ],
)
def test_contradictions_are_refused(document, problem):
    with pytest.raises(CheckpointError, match=problem):
        interpret_training([document, STANDARD_FPN], "")


whole = st.integers(1, 200)


@given(
    iterations=whole,
    warmup=st.integers(0, 250),
    factor=st.floats(0, 1),
    method=st.sampled_from(["linear", "constant"]),
    steps=st.lists(whole, max_size=3).map(lambda steps: tuple(sorted(steps))),
    gamma=st.floats(0.1, 1),
    data=st.data(),
)
def test_rate_in_steps(iterations, warmup, factor, method, steps, gamma, data):
    recipe = Recipe(
        iterations=iterations,
        warmup=warmup,
        warmup_factor=factor,
        warmup_method=method,
        steps=steps,
        gamma=gamma,
    )
    now = data.draw(st.integers(0, iterations - 1))
    warmup = min(warmup, iterations)

    def plain(iteration):
        rate = 1.0
        for step in steps:
            if iteration >= step:
                rate *= gamma
        return rate

    expected = plain(now)
    if now < warmup:
        passed = now / warmup if method == "linear" else 0
        expected = factor * (1 - passed) + plain(warmup) * passed
    assert recipe.course()(now) == pytest.approx(expected)


@given(iterations=whole, warmup=st.integers(0, 250), last=st.floats(0, 1), data=st.data())
def test_rate_along_a_cosine(iterations, warmup, last, data):
    recipe = Recipe(
        iterations=iterations, warmup=warmup, schedule="WarmupCosineLR", rate=2.0, last_rate=last
    )
    now = data.draw(st.integers(0, iterations - 1))
    # torch's own, one step after the other, knows no warm-up
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    course = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations, eta_min=last)
    rates = []
    for _ in range(iterations + 1):
        rates.append(course.get_last_lr()[0])
        optimizer.step()
        course.step()
    warmup = min(warmup, iterations)
    expected = rates[now]
    if now < warmup:
        expected = 2 * 0.001 + (rates[warmup] - 2 * 0.001) * now / warmup
    assert 2 * recipe.course()(now) == pytest.approx(expected, abs=1e-9)


def test_norms_and_biases_have_their_own_rate_and_decay():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2))
    network[2].weight.requires_grad_(False)
    recipe = Recipe(rate=0.5, decay=0.1, norm_decay=0.2, bias_decay=0.3, bias_rate=2.0)
    found = {
        (group["lr"], group["weight_decay"]): group["params"]
        for group in parameter_groups(network, recipe)
    }
    assert found.keys() == {(0.5, 0.1), (1.0, 0.3), (0.5, 0.2)}
    assert [id(one) for one in found[0.5, 0.1]] == [id(network[0].weight)]
    assert [id(one) for one in found[0.5, 0.2]] == [id(network[1].weight)]
    assert [id(one) for one in found[1.0, 0.3]] == [id(module.bias) for module in network]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("value", [[1.0, 1.0], [1.0]]),
        ("norm", [[0.6, 0.8], [1.0]]),
        ("full_model", [[3 / 13, 4 / 13], [12 / 13]]),
    ],
)
def test_gradients_are_clipped(kind, expected):
    network = nn.ParameterList([torch.zeros(2), torch.zeros(1)])
    network[0].grad, network[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    clip_gradients(network, Recipe(clip_type=kind))
    for parameter, grad in zip(network, expected, strict=True):
        assert parameter.grad.tolist() == pytest.approx(grad)


def test_gradients_are_clipped_by_their_greatest(config):
    recipe = interpret_training(
        [{"SOLVER": {"CLIP_GRADIENTS": {"NORM_TYPE": inf}}}, *read_documents(config)], ""
    )[1]
    network = nn.ParameterList([nn.Parameter(torch.zeros(2))])
    network[0].grad = torch.tensor([3.0, 4.0])
    clip_gradients(network, replace(recipe, clip_type="norm", clip_value=1.0))
    assert network[0].grad.tolist() == pytest.approx([0.75, 1])


def test_what_is_written_says_the_same(config, tmp_path):
    out = tmp_path / "model.yaml"
    network, recipe = read_training(config)
    save_config(network, recipe, out)
    assert read_config(out) == network
    assert yaml.safe_load(out.read_text())["ZARRMASK"] == {
        "EVEN_CONTRAST": True,
        "LOOK_CLOSER": True,
    }
    _, again = read_training(out)
    assert again.short == recipe.short
    assert again.rate == Recipe().rate  # not AdamW's, of which detectron2 knows nothing
    save_config(network, replace(recipe, optimizer="SGD"), out)
    _, again = read_training(out)
    assert (again.rate, again.steps) == (recipe.rate, recipe.steps)
    assert not again.clipped  # as detectron2 cannot
    by_value = replace(recipe, optimizer="SGD", clip_type="value")
    save_config(network, by_value, out)
    _, again = read_training(out)
    assert (again.clipped, again.clip_type) == (True, "value")
    assert interpret(read_documents(out), "").classes == 1
    usual = replace(network, even_contrast=False, look_closer=False)
    save_config(usual, recipe, out)
    assert "ZARRMASK" not in yaml.safe_load(out.read_text())  # detectron2 would refuse it


@pytest.mark.parametrize(
    ("stated", "asked", "expected"), [(-1, None, 0), (3, None, 3), (3, 9, 9), (-1, 0, 0)]
)
def test_a_seed_that_is_asked_for_is_the_one_that_is_written(tmp_path, stated, asked, expected):
    config = tmp_path / "seeded.yaml"
    config.write_text(f"_BASE_: {CONFIGS / 'phantom_r18.yaml'}\nSEED: {stated}\n")
    start = begin(config, None, None, asked)
    assert start.seed == expected
    assert start.recipe.seed == (stated if asked is None else asked)
    assert recipe_keys(start.recipe).get("SEED", -1) == start.recipe.seed


def test_a_last_rate_is_of_a_cosine_alone():
    steps = {"SOLVER": {"BASE_LR": 0.1, "BASE_LR_END": 0.2}}
    _, recipe = interpret_training([steps, STANDARD_FPN], "it")
    assert recipe.course()(recipe.warmup) == 1


def test_the_bundled_checkpoint_is_trained_on_as_what_its_training_leaves(tmp_path):
    """Its config is written by hand: fine-tuning it is to be fine-tuning `train --phantom`'s."""
    network, recipe = interpret_training(read_documents(CONFIGS / "phantom_r18.yaml"), "it")
    save_config(network, recipe, tmp_path / "model.yaml")
    fine = read_documents(CONFIGS / "finetune.yaml")
    bundled, left = (
        interpret_training([*fine, *read_documents(path)], "it")
        for path in (BESIDE_WEIGHTS, tmp_path / "model.yaml")
    )
    assert bundled == left
