from pathlib import Path

import numpy as np
import pytest
import torch

from zarrmask.detection.load import load_detector
from zarrmask.detection.training import Recipe, SimulatedBatches, boxes_of, train
from zarrmask.errors import CheckpointError, OutputError

SHIPPED = Path(__file__).parents[2] / "configs" / "phantom_r18.yaml"
SMALL = {
    "STEM_OUT_CHANNELS: 32": "STEM_OUT_CHANNELS: 8",
    "RES2_OUT_CHANNELS: 32": "RES2_OUT_CHANNELS: 8",
    "OUT_CHANNELS: 64": "OUT_CHANNELS: 8",
    "FC_DIM: 128": "FC_DIM: 8",
    "CONV_DIM: 64": "CONV_DIM: 8",
    "POOLER_RESOLUTION: 28": "POOLER_RESOLUTION: 7",
    "POOLER_RESOLUTION: 14": "POOLER_RESOLUTION: 4",
    "IMS_PER_BATCH: 4": "IMS_PER_BATCH: 2",
    "[224, 352]": "[64, 72]",
    "MAX_SIZE_TRAIN: 576": "MAX_SIZE_TRAIN: 90",
}


@pytest.fixture
def config(tmp_path):
    """The shipped config, so small that an iteration takes no time."""
    text = SHIPPED.read_text()
    for large, small in SMALL.items():
        assert large in text
        text = text.replace(large, small)
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_recipe_is_read_from_the_config(config):
    recipe = Recipe.read(config)
    assert (recipe.batch, recipe.short, recipe.limit) == (2, (64, 72), 90)
    assert Recipe.read(SHIPPED).batch == 4


def test_recipe_names_every_bad_value(config):
    text = config.read_text().replace("IMS_PER_BATCH: 2", "IMS_PER_BATCH: none")
    config.write_text(text.replace("BASE_LR: 0.0008", "BASE_LR: -1"))
    with pytest.raises(CheckpointError, match=r"IMS_PER_BATCH is 'none', SOLVER.BASE_LR is -1"):
        Recipe.read(config)


def test_rate_rises_and_falls():
    recipe = Recipe(warmup=10)
    rates = [recipe.rate_at(iteration, 100) for iteration in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert np.argmax(rates) in (9, 10)
    assert rates[-1] < 0.01
    assert all(rate > 0 for rate in rates)


def test_batches_are_well_formed_and_reproducible(config):
    recipe = Recipe.read(config)
    for _, (images, targets), (again, _) in zip(
        range(20), SimulatedBatches(recipe, 3), SimulatedBatches(recipe, 3), strict=False
    ):
        assert len({image.shape for image in images}) == 1
        for image, same, target in zip(images, again, targets, strict=True):
            assert torch.equal(image, same)
            assert image.dtype == torch.float32
            assert 0 <= image.min() <= image.max() <= 255
            assert target["masks"].shape[1:] == image.shape[1:]
            assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
            for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
                inside = mask[box[1] : box[3], box[0] : box[2]]
                assert inside.sum() == mask.sum() > 0


def test_boxes_fit():
    masks = np.zeros((1, 9, 12), np.uint8)
    masks[0, 2:5, 3:10] = 1
    assert boxes_of(masks).tolist() == [[3, 2, 10, 5]]
    assert boxes_of(masks[:0]).shape == (0, 4)


def test_train_leaves_a_checkpoint_that_detects_and_goes_on(config, tmp_path):
    out = tmp_path / "out"
    steps = []
    checkpoint = train(config, out, iterations=2, workers=0, progress=steps.append)
    assert steps[-1].iteration == 2
    assert np.isfinite(list(steps[-1].losses.values())).all()
    image = np.full((80, 90), 100, np.uint8)
    before = load_detector(checkpoint).detect([image], [image.shape])
    assert len(before) == 1
    first = checkpoint.read_bytes()
    with pytest.raises(OutputError, match="holds a training already"):
        train(config, out, iterations=3, workers=0, resume=False)
    train(config, out, iterations=3, workers=0, progress=steps.append)
    assert [step.iteration for step in steps] == [2, 3]
    assert checkpoint.read_bytes() != first
    assert not list(out.glob("*.part"))


def test_a_training_of_another_network_is_not_resumed(config, tmp_path):
    train(config, tmp_path / "out", iterations=1, workers=0)
    config.write_text(config.read_text().replace("FC_DIM: 8", "FC_DIM: 6"))
    with pytest.raises(CheckpointError, match="is not a training of this config"):
        train(config, tmp_path / "out", iterations=2, workers=0)
    (tmp_path / "out" / "training.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="Name another folder"):
        train(config, tmp_path / "out", iterations=2, workers=0)
