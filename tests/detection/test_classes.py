"""Only the chosen classes of a detector make the mask."""

import json

import numpy as np
import pytest
import zarr

import zarrmask
from zarrmask.detection.detections import Detections, union_mask
from zarrmask.detection.inputs import to_8bit
from zarrmask.detection.load import load_detector
from zarrmask.detection.protocol import detect_one
from zarrmask.errors import SettingsError
from zarrmask.masking import KeyframeStore
from zarrmask.running.pipeline import foresee

SCORE = 0.1


def test_of_classes_keeps_theirs_in_their_order():
    found = Detections(
        np.arange(16, dtype=np.float32).reshape(4, 4),
        np.array([0.9, 0.75, 0.5, 0.1], np.float32),
        np.array([2, 0, 1, 2]),
        np.ones((4, 2, 2), np.float32),
    )
    kept = found.of_classes((2, 0))
    assert kept.classes.tolist() == [2, 0, 2]
    assert kept.boxes[:, 0].tolist() == [0, 4, 12]
    assert kept.scores.tolist() == found.scores[[0, 1, 3]].tolist()
    assert len(kept.patches) == 3
    assert len(found.of_classes(())) == 0


@pytest.mark.parametrize("classes", [None, (0,), (1,)])
def test_a_run_counts_the_chosen_classes_alone(checkpoint, stack, cluster, tmp_path, classes):
    out = tmp_path / "out"
    options = {"every": 12, "score": SCORE, "scheduler": cluster, "volume": False}
    record = zarrmask.run(stack, out, checkpoint=checkpoint, classes=classes, **options)
    detector = load_detector(checkpoint, score_threshold=SCORE)
    slices = zarrmask.open_stack(stack)
    store = KeyframeStore(out / "keyframes.zarr")
    counts = zarr.open_array(out / "keyframes.zarr" / "count", mode="r")[:]
    for n, z in enumerate(store.numbers()):
        image = to_8bit(slices.sel(z=z).values)
        every = detect_one(detector, image)
        assert set(every.classes) == {0, 1}
        found = every if classes is None else every.of_classes(classes)
        assert counts[n] == len(found) > 0
        assert np.array_equal(store.masks()[n], union_mask(found, image.shape))
    chosen = None if classes is None else list(classes)
    assert record["settings"]["classes"] == chosen
    assert json.loads((out / "run.json").read_text())["settings"]["classes"] == chosen


@pytest.mark.parametrize("has_config", [True, False])
def test_classes_that_a_checkpoint_lacks_are_refused_before_all(
    checkpoint, stack, tmp_path, has_config
):
    if not has_config:
        checkpoint.with_suffix(".yaml").unlink()
    message = r"classes 2, 7 are asked for, but .* knows 2 classes, 0 to 1"
    for work in (zarrmask.run, foresee):
        with pytest.raises(SettingsError, match=message):
            work(stack, tmp_path / "out", checkpoint=checkpoint, classes="1 2 7")
    assert not (tmp_path / "out").exists()
