"""A simulated scroll's masks."""

from functools import cache

import pytest
from sightings import DEPTH

from zarrmask.phantom import Phantom


@pytest.fixture(scope="module", params=[1, 2])
def truth(request):
    """The mask of a slice of a simulated scroll with its ends."""
    return cache(Phantom((DEPTH, 96, 128), seed=request.param).truth)
