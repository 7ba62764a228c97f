"""Detectors as Dask actors: loaded once where they are, one a GPU, else one a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from distributed import Client, Future, get_client, get_worker
from numpy.typing import NDArray

from zarrmask.errors import ZarrmaskError

if TYPE_CHECKING:
    from zarrmask.detection.detections import Detections
    from zarrmask.detection.devices import Kind
    from zarrmask.detection.inputs import NetworkInput
    from zarrmask.detection.load import Backend
    from zarrmask.detection.precision import Precision
    from zarrmask.detection.protocol import Detector

ATTEMPTS = 5
LOOK = 5
"""Seconds after which who waits for a detector looks whether it is still there."""


class DetectorLostError(RuntimeError):
    """The worker of a detector that was asked is gone."""


_Slice: TypeAlias = tuple[NDArray[np.uint8], tuple[int, int]]


@dataclass(frozen=True)
class Recipe:
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
    recipe : Recipe
    device : str
        As torch names it: "cpu", "cuda:0".
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        self._detector = recipe.load(device)
        self._classes = recipe.classes
        self._batch = recipe.together(device)
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


def accelerators_here(kind: Kind) -> list[tuple[str, str]]:
    """See `zarrmask.detection.devices.accelerators`."""
    from zarrmask.detection.devices import accelerators

    return accelerators(kind)


def placement(seen: Mapping[str, Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Where detectors go: one a GPU, on a worker that sees it; without GPUs one a worker.

    Workers of dask-cuda see all GPUs, each another one first: that one is its own.

    Parameters
    ----------
    seen : mapping
        Worker's address to identity and device of the GPUs it sees (`accelerators`). Workers on
        one machine may see the same ones.

    Returns
    -------
    list of (worker, device)

    Examples
    --------
    >>> both = [("first", "cuda:0"), ("second", "cuda:1")]
    >>> placement({"a": both, "b": both, "c": []})
    [('a', 'cuda:0'), ('b', 'cuda:1')]
    >>> placement({"a": [("second", "cuda:0"), ("first", "cuda:1")], "b": both})
    [('a', 'cuda:0'), ('b', 'cuda:0')]
    >>> placement({"a": [], "b": []})
    [('a', 'cpu'), ('b', 'cpu')]
    """
    seen_by: dict[str, list[tuple[int, str, str]]] = {}
    for worker, accelerators in seen.items():
        for turn, (identity, device) in enumerate(accelerators):
            seen_by.setdefault(identity, []).append((turn, worker, device))
    if not seen_by:
        return [(worker, "cpu") for worker in seen]
    places: list[tuple[str, str]] = []
    for candidates in seen_by.values():
        taken = [worker for worker, _ in places]
        _, worker, device = min(candidates, key=lambda one: (taken.count(one[1]), one[0]))
        places.append((worker, device))
    return places


def start_detectors(client: Client, recipe: Recipe, device: Kind = "auto") -> list[Any]:
    """Start the detectors and wait until their weights are loaded.

    Parameters
    ----------
    client : Client
    recipe : Recipe
    device : "auto", "cpu", "cuda" or "mps"
        "auto" takes GPUs if any worker sees one.

    Returns
    -------
    list of distributed.Actor
        They live as long as these are held.

    Raises
    ------
    CheckpointError
        From the workers, where the checkpoint cannot be loaded.
    SettingsError
        Where no worker has the device, the precision or the backend.
    ZarrmaskError
        Where workers die of it.
    """
    for _ in range(ATTEMPTS):
        try:
            client.submit(_here, pure=False).result()  # whoever comes first does it
            seen = client.run(accelerators_here, device)
        except OSError:
            continue
        places = placement(seen)
        if device in ("cuda", "mps") and not any(seen.values()):
            from zarrmask.detection.devices import no_accelerator

            raise no_accelerator(device)
        futures = [
            client.submit(DetectorActor, recipe, here, actor=True, workers=[worker], pure=False)
            for worker, here in places
        ]
        # Nothing comes of an actor whose worker dies meanwhile, not even an error.
        while not all(future.done() for future in futures):
            if not {worker for worker, _ in places} <= set(client.nthreads()):
                break
            time.sleep(0.1)
        else:
            return [future.result() for future in futures]
        client.cancel(futures)
    raise ZarrmaskError(
        f"workers died {ATTEMPTS} times while the detector was loaded, most likely for want of "
        "memory; use fewer --workers, or workers with more memory, then run the same command again"
    )


def _here() -> None:
    """What a worker does as soon as there is one; until then it is waited for."""


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
                raise
            client = get_client()
            if not client.sync(client.scheduler.who_has, keys=[detector.key])[detector.key]:
                raise DetectorLostError("Worker holding Actor was lost") from None


def dismiss(client: Client, detectors: Sequence[Any]) -> None:
    """Let workers forget detectors, whoever here still holds them: errors do, for a while."""
    client.cancel([Future(detector.key, client) for detector in detectors])


def nearest(detectors: Sequence[Any], turn: int) -> Any:
    """Choose the detector on this worker if there is one, else take turns."""
    here = get_worker().address
    local = [detector for detector in detectors if detector._address == here]
    pool = local or detectors
    return pool[turn % len(pool)]
