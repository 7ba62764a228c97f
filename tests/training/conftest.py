import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {
    "STEM_OUT_CHANNELS: 32": "STEM_OUT_CHANNELS: 8",
    "RES2_OUT_CHANNELS: 32": "RES2_OUT_CHANNELS: 8",
    "OUT_CHANNELS: 64": "OUT_CHANNELS: 8",
    "FC_DIM: 128": "FC_DIM: 8",
    "CONV_DIM: 64": "CONV_DIM: 8",
    "POOLER_RESOLUTION: 80": "POOLER_RESOLUTION: 7",
    "POOLER_RESOLUTION: 14": "POOLER_RESOLUTION: 4",
    "IMS_PER_BATCH: 4": "IMS_PER_BATCH: 2",
    "[288, 496]": "[64, 72]",
    "MAX_SIZE_TRAIN: 920": "MAX_SIZE_TRAIN: 90",
    "MIN_SIZE_TEST: 448": "MIN_SIZE_TEST: 64",
    "MAX_SIZE_TEST: 689": "MAX_SIZE_TEST: 90",
}
PLAIN = {  # as detectron2 trains
    "EVEN_CONTRAST: true": "EVEN_CONTRAST: false",
    "AVERAGE: 0.998": "AVERAGE: 0.0",
    "OPTIMIZER: AdamW": "OPTIMIZER: SGD",
    "HELP: true": "HELP: false",
    "BASE_LR: 0.0006": "BASE_LR: 0.02",
    "WarmupCosineLR": "WarmupMultiStepLR",
    "WARMUP_ITERS: 200": "WARMUP_ITERS: 4",
    "WEIGHT_DECAY: 0.02": "WEIGHT_DECAY: 0.0001",
    "CHECKPOINT_PERIOD: 100": "CHECKPOINT_PERIOD: 3",
    "BASE_LR_END: 0.000004": "BASE_LR_END: 0.0",
}


def changed(text, changes):
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    return text


@pytest.fixture
def config(tmp_path):
    """The shipped config, so small that an iteration takes no time."""
    path = tmp_path / "small.yaml"
    path.write_text(changed((CONFIGS / "phantom_r18.yaml").read_text(), SMALL))
    return path


@pytest.fixture
def plain(config):
    """The same network with detectron2's optimizer, in steps, at full precision."""
    text = changed(config.read_text(), PLAIN)
    config.write_text(text.replace("AMP:\n    ENABLED: true", "AMP:\n    ENABLED: false"))
    return config


@pytest.fixture
def annotated(tmp_path):
    """Annotations of six small slices with a bright block on each, the last one empty."""
    return _annotate(tmp_path, 1)


@pytest.fixture
def annotate():
    """Give a function that makes such annotations of some categories in a folder."""
    return _annotate


def _annotate(folder, categories):
    images = folder / "images"
    images.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    listed, marks = [], []
    for number in range(6):
        image = rng.integers(20, 60, (80, 90), np.uint8)
        if number < 5:
            y, x = (int(side) for side in rng.integers(5, 30, 2))
            image[y : y + 40, x : x + 45] += 120
            corners = [x, y, x + 45, y, x + 45, y + 40, x, y + 40]
            mark = {"id": number, "image_id": number, "segmentation": [corners]}
            marks.append({**mark, "category_id": 7 + number % categories, "iscrowd": 0})
        cv2.imwrite(str(images / f"{number}.png"), image)
        listed.append({"id": number, "file_name": f"{number}.png", "height": 80, "width": 90})
    document = {
        "images": listed,
        "annotations": marks,
        "categories": [{"id": 7 + n, "name": f"scroll {n}"} for n in range(categories)],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return path, images


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
