import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torchvision.ops import roi_align

from zarrmask.detection import region_pooling
from zarrmask.detection.region_pooling import pool_regions

IMAGES, CHANNELS, SHAPE, SCALE = 2, 3, (9, 14), 0.25
coordinates = st.floats(-20, 70, width=32)


@st.composite
def regions(draw):
    """Regions of two images of 36 x 56 pixels, some beyond them, some flat."""
    rows = st.tuples(st.integers(0, IMAGES - 1), *[coordinates] * 4)
    rois = torch.tensor(draw(st.lists(rows, max_size=6)), dtype=torch.float32).reshape(-1, 5)
    corners = rois[:, 1:].unflatten(1, (2, 2)).sort(1).values
    return torch.cat([rois[:, :1], corners.flatten(1)], 1)


def features(seed):
    maps = torch.randn(IMAGES, CHANNELS, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return maps.contiguous(memory_format=torch.channels_last)


@given(
    regions(),
    st.sampled_from([(7, 7), (1, 4), (5, 2)]),
    st.sampled_from([0, 1, 2, 3]),
    st.booleans(),
    st.integers(0, 99),
)
def test_pools_what_torchvision_does(rois, size, samples, aligned, seed):
    maps = features(seed)
    found = pool_regions(maps, rois, size, SCALE, samples, aligned)
    expected = roi_align(maps, rois, size, SCALE, samples, aligned)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("samples", [0, 2])
def test_gradients_are_those_of_torchvision(samples):
    rois = torch.tensor([[0, 1, 2, 30, 20], [1, -5, 3, 60, 33], [0, 10, 10, 11, 12.0]])
    gradients = []
    for pool in (pool_regions, roi_align):
        maps = features(1).requires_grad_()
        pool(maps, rois, (7, 7), SCALE, samples, True).square().sum().backward()
        gradients.append(maps.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


def test_many_regions_are_pooled_some_at_a_time(monkeypatch):
    rois = torch.rand(40, 5, generator=torch.Generator().manual_seed(0)) * 30
    rois[:, 0] = 1
    rois[:, 3:] += rois[:, 1:3]
    whole = pool_regions(features(2), rois, (7, 7), SCALE, 0, True)
    monkeypatch.setattr(region_pooling, "AT_ONCE", 1)
    assert torch.equal(pool_regions(features(2), rois, (7, 7), SCALE, 0, True), whole)
