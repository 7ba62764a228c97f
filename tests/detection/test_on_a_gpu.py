"""What the network does on a GPU, on one that is pretended: no tensor is left where it was."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended import Elsewhere, pretended

from zarrmask.detection import load
from zarrmask.detection.load import MaskRCNNDetector

DEVICES = [torch.device("cuda", 0), torch.device("mps")]


@pytest.fixture(autouse=True)
def _pretended(monkeypatch):
    monkeypatch.setattr(load, "has_bfloat16", lambda _device: True)
    with pretended(monkeypatch):
        yield


@pytest.fixture
def images(slices):
    return [slices(64, 80), slices(64, 96), slices(64, 64)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_what_is_pretended_fails_as_a_gpu_does(device):
    there = torch.arange(6.0).to(device).view(2, 3)
    assert there.device == device
    assert (there + 1).sum().item() == 21
    there[0] = 5
    assert torch.equal(there.cpu(), torch.tensor([[5.0, 5, 5], [3, 4, 5]]))
    assert torch.zeros(3, device=device).device == device
    with pytest.raises(RuntimeError, match="not all on one device"):
        there + torch.ones(3)
    with pytest.raises(RuntimeError, match="not all on one device"):
        torch.arange(3)[torch.ones(3, dtype=torch.bool, device=device)]
    with pytest.raises(TypeError, match="cannot become NumPy's"):
        np.asarray(there)
    weight = torch.ones(3, requires_grad=True)
    (weight.to(device) * there).sum().cpu().backward()
    assert torch.equal(weight.grad, torch.tensor([8.0, 9, 10]))


def test_mps_has_no_float64():
    with pytest.raises(TypeError, match="no float64"):
        torch.zeros(3, dtype=torch.float64, device="mps")


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("evens", [False, True])
def test_detecting_stays_on_the_device(tiny, tiny_weights, images, device, mirrored, evens):
    config = replace(tiny, even_contrast=evens)
    sizes = [image.shape for image in images]
    kinds = {"batch": 2, "mirrored": mirrored}
    there = MaskRCNNDetector(config, tiny_weights, "tiny", device, **kinds)
    assert all(isinstance(one, Elsewhere) for one in there.model.state_dict().values())
    here = MaskRCNNDetector(config, tiny_weights, "tiny", torch.device("cpu"), **kinds)
    found = there.detect(images, sizes)
    assert sum(map(len, found)) > 0
    for one, other in zip(found, here.detect(images, sizes), strict=True):
        assert len(one) == len(other)
        assert np.allclose(one.boxes, other.boxes, atol=1e-3)
        assert np.allclose(one.patches, other.patches, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_fast_detecting_stays_on_the_device(tiny, tiny_weights, images, device):
    detector = MaskRCNNDetector(tiny, tiny_weights, "tiny", device, "fast")
    found = detector.detect(images, [image.shape for image in images])
    assert sum(map(len, found)) > 0


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_nothing_found_stays_on_the_device(tiny, tiny_weights, images, device):
    config = replace(tiny, score_threshold=1.0)
    detector = MaskRCNNDetector(config, tiny_weights, "tiny", device)
    found = detector.detect(images, [image.shape for image in images])
    assert sum(map(len, found)) == 0
