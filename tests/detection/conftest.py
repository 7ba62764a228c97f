import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from zarrmask.detection.config import _FIXED, ModelConfig, interpret
from zarrmask.detection.network import build_model
from zarrmask.detection.shapes import STANDARD_FPN
from zarrmask.detection.weights import model_weights

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def standard() -> ModelConfig:
    """detectron2's mask_rcnn_R_50_FPN (80 classes)."""
    return interpret([STANDARD_FPN], "standard")


@pytest.fixture(scope="session")
def tiny(standard) -> ModelConfig:
    """A network small enough to run in milliseconds."""
    return replace(
        standard,
        depth=18,
        stem_channels=4,
        res2_channels=4,
        fpn_channels=8,
        classes=2,
        box_fc_channels=16,
        mask_channels=4,
        mask_convs=1,
        min_size=64,
        max_size=96,
    )


@pytest.fixture(scope="session")
def tiny_weights(tiny) -> dict[str, torch.Tensor]:
    """Weights that answer differently in different places, to a checkpoint of that network."""
    torch.manual_seed(0)
    weights = model_weights(build_model(tiny))
    torch.manual_seed(4)  # whatever the network's own first weights took: both classes are found
    for name in ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor"):
        for key in weights:
            if f".{name}.weight" in key:
                torch.nn.init.normal_(weights[key], std=1 / weights[key][0].numel() ** 0.5)
    weights["backbone.bottom_up.stem.conv1.weight"] /= 64
    return weights


@pytest.fixture(scope="session")
def as_yaml():
    """Give a function that writes a config out in detectron2's keys."""

    def write(config: ModelConfig) -> str:
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

    return write


@pytest.fixture
def checkpoint(tmp_path, tiny, tiny_weights, as_yaml) -> Path:
    """The tiny network's weights, with its config beside them."""
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(tiny_weights, path)
    (tmp_path / "tiny.yaml").write_text(as_yaml(tiny))
    return path


@pytest.fixture(scope="session", params=["r18", "r101"])
def reference_checkpoint(request, shared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / f"{request.param}.pth"
    script = shared / "detectron2-reference" / "make_checkpoint.py"
    subprocess.run([sys.executable, script, request.param, path], check=True, capture_output=True)
    return path


@pytest.fixture
def slices():
    """Grey slices with something in them, of several shapes."""
    rng = np.random.default_rng(0)

    def make(height: int, width: int) -> np.ndarray:
        image = np.zeros((height, width), np.uint8)
        for _ in range(5):
            y, x = rng.integers(0, height * 2 // 3 + 1), rng.integers(0, width * 2 // 3 + 1)
            image[y : y + height // 3, x : x + width // 3] += np.uint8(rng.integers(20, 60))
        return image + rng.integers(0, 9, image.shape, np.uint8)

    return make
