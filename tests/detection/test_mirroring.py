from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.image_list import ImageList

from zarrmask.detection.load import MaskRCNNDetector
from zarrmask.detection.mirroring import ALONE, MIRRORED, MeanLook, View, views_of

sides = st.integers(1, 12)


def inside(box, size):
    """Mark the pixels that lie in a box."""
    mask = torch.zeros(size)
    x0, y0, x1, y1 = box.int().tolist()
    mask[y0:y1, x0:x1] = 1
    return mask


@given(st.sampled_from(MIRRORED), sides, sides, st.data())
def test_a_mirrored_box_lies_where_its_pixels_are(view, height, width, data):
    x = sorted(data.draw(st.tuples(*[st.integers(0, width)] * 2)))
    y = sorted(data.draw(st.tuples(*[st.integers(0, height)] * 2)))
    box, size = torch.tensor([x[0], y[0], x[1], y[1]], dtype=torch.float32), (height, width)
    assert torch.equal(inside(view.boxes(box, size), size), view.image(inside(box, size)))
    assert torch.equal(view.boxes(view.boxes(box, size), size), box)
    assert torch.equal(view.image(view.image(inside(box, size))), inside(box, size))


def test_four_views_or_the_slice_alone():
    assert views_of(False) == ALONE == MIRRORED[:1] == (View(),)
    images = {tuple(view.image(torch.arange(6.0).reshape(2, 3)).flatten()) for view in MIRRORED}
    assert len(images) == len(views_of(True)) == 4


@dataclass
class Leaning:
    """Sees every box 2 pixels to the right and 1 down, surer the further right, masks uneven."""

    width: int

    def boxes(self, proposals):
        boxes = proposals + torch.tensor([2.0, 1.0, 2.0, 1.0])
        score = proposals[:, 0] / self.width
        return torch.stack([1 - score, score], 1), boxes[:, None]

    def masks(self, boxes, labels):
        return torch.arange(9.0).reshape(1, 1, 3, 3).expand(len(boxes), 1, 3, 3)


def test_what_leans_in_every_view_is_straight_on_average():
    proposals = torch.tensor([[10.0, 20.0, 40.0, 60.0], [0.0, 0.0, 100.0, 80.0]])
    look = MeanLook([(view, Leaning(100)) for view in MIRRORED], (80, 100))
    scores, boxes = look.boxes(proposals)
    assert torch.allclose(boxes[:, 0], proposals)
    assert torch.allclose(scores[:, 1], torch.tensor([(0.1 + 0.6) / 2, 0.0]))
    assert torch.allclose(look.masks(boxes[:, 0], torch.ones(2)), torch.full((2, 1, 3, 3), 4.0))


def test_alone_it_says_what_it_says():
    proposals = torch.tensor([[10.3, 20.1, 40.7, 60.9]])
    alone, mean = Leaning(100), MeanLook([(View(), Leaning(100))], (80, 100))
    for said, expected in zip(mean.boxes(proposals), alone.boxes(proposals), strict=True):
        assert torch.equal(said, expected)


@pytest.fixture
def detector(tiny, tiny_weights):
    config = replace(tiny, score_threshold=0.0)
    return MaskRCNNDetector(config, tiny_weights, "it", torch.device("cpu"), mirrored=True)


@pytest.mark.parametrize("view", MIRRORED)
def test_a_mirrored_slice_gives_mirrored_boxes_and_masks(detector, slices, view, monkeypatch):
    """Of the same proposals: these are the first view's alone."""
    image = torch.tensor(slices(64, 96))
    proposals = torch.tensor([[8.0, 4.0, 60.0, 50.0], [30.0, 20.0, 90.0, 64.0]])
    found = []
    for seen in (View(), view):

        def proposed(images: ImageList, features, seen=seen):
            return [seen.boxes(proposals, images.image_sizes[0])], {}

        monkeypatch.setattr(detector.model.rpn, "forward", proposed)
        picture = np.ascontiguousarray(seen.image(image).numpy())
        found.append(detector.detect([picture], [(64, 96)])[0])
    here, there = found
    assert len(here) == len(there) > 0
    back = view.boxes(torch.tensor(there.boxes), (64, 96)).numpy()
    assert np.abs(here.scores - there.scores).max() < 1e-5
    assert np.abs(here.boxes - back).max() < 1e-3
    assert np.abs(here.patches - view.image(torch.tensor(there.patches)).numpy()).max() < 1e-4


def test_a_batch_gives_what_each_slice_gives_alone(tiny, tiny_weights, slices):
    config = replace(tiny, score_threshold=0.0)
    detector = MaskRCNNDetector(
        config, tiny_weights, "it", torch.device("cpu"), batch=3, mirrored=True
    )
    images = [slices(64, 96), slices(64, 90), slices(64, 96)]
    sizes = [(64, 96), (64, 90), (64, 96)]
    together = detector.detect(images, sizes)
    for image, size, found in zip(images, sizes, together, strict=True):
        (alone,) = detector.detect([image], [size])
        assert len(found) == len(alone) > 0
        for name in ("boxes", "scores", "patches"):
            assert np.array_equal(getattr(found, name), getattr(alone, name))
