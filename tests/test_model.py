"""What of a checkpoint makes a run another."""

from pathlib import Path

import pytest
import yaml

from zarrmask.errors import CheckpointError
from zarrmask.running.model import config_identity, find_checkpoint
from zarrmask.settings import read_settings
from zarrmask.shipped import DEFAULT_CHECKPOINT

SHIPPED = yaml.safe_load(DEFAULT_CHECKPOINT.with_suffix(".yaml").read_text())


def identity(folder: Path, config: object, **options: str) -> str | None:
    file = folder / "model.yaml"
    file.write_text(yaml.safe_dump(config))
    return config_identity(read_settings(**options), folder / "model.safetensors")


@pytest.mark.parametrize("backend", ["torchvision", "detectron2"])
def test_a_config_that_states_something_else_is_another(tmp_path: Path, backend: str) -> None:
    found = identity(tmp_path, SHIPPED, backend=backend)
    assert found == identity(tmp_path, dict(reversed(SHIPPED.items())), backend=backend)
    other = SHIPPED | {"TEST": {"DETECTIONS_PER_IMAGE": 7}}
    assert found != identity(tmp_path, other, backend=backend)


def test_a_default_that_is_stated_changes_nothing(tmp_path: Path) -> None:
    fewer = {key: value for key, value in SHIPPED.items() if key != "TEST"}
    stated = {**fewer, "TEST": {"DETECTIONS_PER_IMAGE": 100}}
    assert identity(tmp_path, fewer) == identity(tmp_path, stated)


def test_weights_without_a_config_have_none(tmp_path: Path) -> None:
    assert config_identity(read_settings(), tmp_path / "model.safetensors") is None


def test_what_is_no_checkpoint_is_met_before_anybody_is_waited_for(tmp_path: Path) -> None:
    picture = tmp_path / "model.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(CheckpointError, match=r"model.png is not a checkpoint: it starts with"):
        find_checkpoint(read_settings(checkpoint=picture))
    assert find_checkpoint(read_settings()) == DEFAULT_CHECKPOINT
