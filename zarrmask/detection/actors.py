"""Detectors as Dask actors: loaded once where they are, and asked by the tasks of all workers."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from distributed import Actor, get_client, get_worker
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zarrmask.detection.detections import Detections
    from zarrmask.detection.inputs import NetworkInput
    from zarrmask.detection.load import Backend
    from zarrmask.detection.precision import Precision
    from zarrmask.detection.protocol import Detector

LOOK = 5
"""Seconds between looks whether the detector that is waited for is still there."""
LOST = "Worker holding Actor was lost"
"""As Dask says it."""


class DetectorLostError(RuntimeError):
    """The worker of a detector that was asked is gone."""


_Slice: TypeAlias = tuple[NDArray[np.uint8], tuple[int, int]]


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is made of, see `load_detector`, and how it works.

    Attributes
    ----------
    classes : collection of int, optional
        Those that are found; None is all.
    threads : int
        Of torch.
    batch : int
        Slices that go through an accelerator together; a processor takes each alone.
    """

    checkpoint: Path
    config: Path | None = None
    score: float = 0.1
    classes: Collection[int] | None = None
    backend: Backend = "torchvision"
    precision: Precision = "full"
    threads: int = 1
    batch: int = 1
    mirrored: bool = False

    def together(self, device: str) -> int:
        """How many slices go through a device together."""
        return 1 if device == "cpu" else self.batch

    def load(self, device: str) -> Detector:
        """Load it on a device, and settle the threads of this process."""
        import torch

        from zarrmask.detection.load import load_detector

        torch.set_num_threads(self.threads)
        return load_detector(
            self.checkpoint,
            self.config,
            backend=self.backend,
            precision=self.precision,
            device=device,
            score_threshold=self.score,
            batch=self.together(device),
            mirrored=self.mirrored,
        )


@cache
def _thread(device: str) -> ThreadPoolExecutor:
    """The thread that computes on a device, for all detectors that this process ever has there.

    With a thread each, glibc would keep what the last one freed and take new memory for the next.
    """
    return ThreadPoolExecutor(1, "detector")


class DetectorActor:
    """A detector that stays on its worker with its weights loaded.

    Parameters
    ----------
    spec : DetectorSpec
    device : str
        As torch names it: "cpu", "cuda:0".
    """

    def __init__(self, spec: DetectorSpec, device: str) -> None:
        self._detector = spec.load(device)
        self._classes = spec.classes
        self._batch = spec.together(device)
        self._thread = _thread(device)
        self._waiting: list[tuple[_Slice, asyncio.Future[Detections]]] = []
        self._working: asyncio.Task[None] | None = None

    def input(self) -> NetworkInput:
        """How a slice becomes what the network sees."""
        return self._detector.network_input

    async def detect(self, image: NDArray[np.uint8], size: tuple[int, int]) -> Detections:
        """Detect in a slice; see `Detector.detect`.

        Slices that come while others are in the network go through it together.
        """
        result: asyncio.Future[Detections] = asyncio.get_running_loop().create_future()
        self._waiting.append(((image, size), result))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return await result

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            images, sizes = zip(*(slice_ for slice_, _ in batch), strict=True)
            try:
                found = await loop.run_in_executor(self._thread, self._find, images, sizes)
            except Exception as error:  # each who waits is to know
                for _, result in batch:
                    if not result.cancelled():
                        result.set_exception(error)
            else:
                for (_, result), detections in zip(batch, found, strict=True):
                    if not result.cancelled():
                        result.set_result(detections)
        self._working = None

    def _find(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        found = self._detector.detect(images, sizes)
        if self._classes is None:
            return found
        return [every.of_classes(self._classes) for every in found]


def ask(detector: Any, method: str, *arguments: Any) -> Any:
    """Call a method of a detector's actor.

    Dask's own future of the answer may wait for ever where the actor's worker dies, or is another
    one at the same address.

    Raises
    ------
    DetectorLostError
        Where its worker is gone. Dask raises an OSError or a RuntimeError, if it does.
    """
    answer = getattr(detector, method)(*arguments)
    while True:
        try:
            return answer.result(timeout=LOOK)
        except TimeoutError:
            if answer.done():
                return answer.result()  # it came just now, unless the detector itself raised this
            client = get_client()
            if not client.sync(client.scheduler.who_has, keys=[detector.key])[detector.key]:
                raise DetectorLostError(LOST) from None


@dataclass(frozen=True)
class Directory:
    """Where the detectors of a run are, for the tasks that ask them.

    No task depends on what it names: Dask lets those wait that can be done without.

    Attributes
    ----------
    name : str
        With which the keys of all of them begin.
    places : tuple of (key, address)
        Those that were there when the directory was made.
    """

    name: str
    places: tuple[tuple[str, str], ...]

    def nearest(self, turn: int) -> Actor:
        """Give the detector on this worker if there is one by now, else take turns."""
        worker = get_worker()
        own = [
            (str(key), worker.address)
            for key, actor in list(worker.state.actors.items())
            if actor is not None and str(key).startswith(self.name)  # None is being loaded
        ]
        places = own or self.places
        if not places:
            raise DetectorLostError(LOST)
        key, address = places[turn % len(places)]
        return Actor(DetectorActor, address, key)
