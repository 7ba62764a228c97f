import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zarrmask.detection.detections import Detections, instance_mask, union_mask

sides = st.floats(-10, 40, width=32)


@st.composite
def boxes(draw):
    x0, y0 = draw(sides), draw(sides)
    width, height = (draw(st.floats(0.125, 60, width=32)) for _ in range(2))
    return np.array([x0, y0, x0 + width, y0 + height], np.float32)


patches = arrays(np.float32, (5, 5), elements=st.floats(0, 1, width=32))


def pixel_by_pixel(box, patch, shape):
    """The probability at each pixel's centre, by the definition of bilinear interpolation."""
    size = len(patch)
    zero_around = np.pad(patch.astype(np.float64), 1)
    values = np.zeros(shape)
    x0, y0, x1, y1 = box.astype(np.float64)
    for y in range(shape[0]):
        for x in range(shape[1]):
            v = (y + 0.5 - y0) / (y1 - y0) * size - 0.5
            u = (x + 0.5 - x0) / (x1 - x0) * size - 0.5
            if not (-1 < v < size and -1 < u < size):
                continue
            i, j = int(np.floor(v)), int(np.floor(u))
            corners = zero_around[i + 1 : i + 3, j + 1 : j + 3]
            values[y, x] = [1 - (v - i), v - i] @ corners @ [1 - (u - j), u - j]
    return values


@given(boxes(), patches)
def test_paste_is_bilinear_at_pixel_centres(box, patch):
    probability = pixel_by_pixel(box, patch, (23, 31))
    mask = instance_mask(box, patch, (23, 31))
    undecided = np.abs(probability - 0.5) < 1e-5
    assert np.array_equal(mask[~undecided] == 255, probability[~undecided] >= 0.5)
    assert set(np.unique(mask)) <= {0, 255}


@given(st.lists(st.tuples(boxes(), patches), max_size=4))
def test_union_is_the_union_of_the_instances(instances):
    found = Detections(
        np.array([box for box, _ in instances], np.float32).reshape(-1, 4),
        np.linspace(1, 0.1, len(instances), dtype=np.float32),
        np.zeros(len(instances), np.int64),
        np.array([patch for _, patch in instances], np.float32).reshape(-1, 5, 5),
    )
    expected = np.zeros((23, 31), np.uint8)
    for box, patch in instances:
        expected |= instance_mask(box, patch, (23, 31))
    assert np.array_equal(union_mask(found, (23, 31)), expected)


def test_pasting_into_a_large_slice_takes_little_memory():
    shape = (3000, 4000)
    box = np.array([0, 0, 4000, 3000], np.float32)
    tracemalloc.start()
    mask = instance_mask(box, np.ones((28, 28), np.float32), shape)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask[100:-100, 100:-100].all()
    assert peak - mask.nbytes < 32e6


def test_a_box_beside_the_slice_marks_nothing():
    patch = np.ones((28, 28), np.float32)
    for box in ([50, 2, 60, 9], [-9, 2, -1, 9], [2, -9, 9, -1], [2, 50, 9, 60]):
        assert not instance_mask(np.array(box, np.float32), patch, (30, 40)).any()


@pytest.mark.parametrize(("score", "count"), [(0.0, 3), (0.5, 1), (0.25, 2), (0.9, 0)])
def test_above_keeps_what_scores_more(score, count):
    found = Detections(
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.array([0.75, 0.5, 0.1], np.float32),
        np.array([2, 1, 0]),
        np.ones((3, 2, 2), np.float32),
    )
    kept = found.above(score)
    assert len(kept) == count
    assert kept.boxes.shape == (count, 4)
    assert kept.patches.shape == (count, 2, 2)
    assert kept.classes.tolist() == [2, 1, 0][:count]


def test_tasks_without_weights_do_not_import_torch():
    modules = ("", ".detections", ".inputs", ".protocol", ".config")
    code = "".join(f"import zarrmask.detection{module}\n" for module in modules)
    code += "import sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
