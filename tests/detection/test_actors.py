"""Detectors as actors: slices that wait go through the network together."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from zarrmask.detection.actors import DetectorActor, DetectorSpec, ask
from zarrmask.phantom import simulate
from zarrmask.shipped import DEFAULT_CHECKPOINT

SHAPE = (200, 220)
PROCESSOR = "cpu:0"
"""A processor that is treated as an accelerator."""


@pytest.fixture(scope="module")
def images():
    return [simulate(np.random.default_rng([1, n]), SHAPE, empty=0.0)[0] for n in range(5)]


class Noting:
    """A detector that notes how many slices it is given."""

    def __init__(self, detector):
        self.detector = detector
        self.batches = []

    def detect(self, images, sizes):
        self.batches.append(len(images))
        return self.detector.detect(images, sizes)


def test_slices_that_wait_go_together(images):
    actor = DetectorActor(DetectorSpec(DEFAULT_CHECKPOINT, batch=3), PROCESSOR)
    seen = [actor.input().prepare(image) for image in images]
    actor._detector = noting = Noting(actor._detector)

    async def all_at_once():
        return await asyncio.gather(*(actor.detect(image, SHAPE) for image in seen))

    together = asyncio.run(all_at_once())
    assert sum(noting.batches) == 5
    assert max(noting.batches) == 3
    for image, found in zip(seen, together, strict=True):
        alone = asyncio.run(actor.detect(image, SHAPE))
        assert len(alone) == len(found) > 0
        for name in ("boxes", "scores", "classes", "patches"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(found, name))


def test_on_a_processor_each_goes_alone(images):
    actor = DetectorActor(DetectorSpec(DEFAULT_CHECKPOINT, batch=3), "cpu")
    seen = [actor.input().prepare(image) for image in images]
    actor._detector = noting = Noting(actor._detector)

    async def all_at_once():
        return await asyncio.gather(*(actor.detect(image, SHAPE) for image in seen))

    asyncio.run(all_at_once())
    assert noting.batches == [1] * 5


def test_one_thread_computes_for_all_that_follow_each_other_on_a_device():
    """Else a worker's memory grows with every run: glibc keeps some for each thread."""

    class Where:
        def detect(self, images, sizes):
            return [threading.get_ident()] * len(images)

    threads = set()
    for _ in range(3):
        actor = DetectorActor(DetectorSpec(DEFAULT_CHECKPOINT), "cpu")
        actor._detector = Where()
        threads.add(asyncio.run(actor.detect(None, SHAPE)))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_threads_are_the_runs(images):
    before = torch.get_num_threads()
    try:
        DetectorActor(DetectorSpec(DEFAULT_CHECKPOINT, threads=2), "cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_who_waits_is_told_of_a_failure(images):
    actor = DetectorActor(DetectorSpec(DEFAULT_CHECKPOINT, batch=2), PROCESSOR)
    good = actor.input().prepare(images[0])
    bad = np.zeros((3, 4, 5, 6), np.uint8)

    async def all_at_once():
        calls = [actor.detect(bad, SHAPE), actor.detect(good, SHAPE)]
        return await asyncio.gather(*calls, return_exceptions=True)

    failed = asyncio.run(all_at_once())
    assert any(isinstance(result, Exception) for result in failed)
    assert len(asyncio.run(actor.detect(good, SHAPE))) > 0  # it goes on


class Answer:
    """An answer that comes at the moment when nobody waits for it any more."""

    def __init__(self, outcome):
        self.outcome = outcome

    def result(self, timeout=None):
        if timeout is not None:
            raise TimeoutError
        return self.outcome()

    def done(self):
        return True


class Late:
    """A detector whose answers come so."""

    def detect(self):
        return Answer(lambda: "found")

    def fail(self):
        def outcome():
            raise TimeoutError("of the detector's own")

        return Answer(outcome)


def test_an_answer_that_comes_when_the_wait_ends_is_taken():
    assert ask(Late(), "detect") == "found"
    with pytest.raises(TimeoutError, match="own"):
        ask(Late(), "fail")
