"""Detectors as Dask actors: loaded once where they are, one a GPU, else one a worker."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from distributed import Client, get_worker
from numpy.typing import NDArray

from zarrmask.errors import ZarrmaskError

if TYPE_CHECKING:
    from zarrmask.detection.detections import Detections
    from zarrmask.detection.inputs import NetworkInput
    from zarrmask.detection.protocol import Detector

ATTEMPTS = 5
PATIENCE = 60
"""Seconds that a lost worker may take to come back."""


class DetectorActor:
    """A detector that stays on its worker with its weights loaded.

    Parameters
    ----------
    checkpoint : Path
    config : Path or None
    score : float
        See `load_detector`.
    device : str
        As torch names it: "cpu", "cuda:0".
    classes : collection of int, or None
        Only what is of these classes is found; None is all.
    """

    def __init__(
        self,
        checkpoint: Path,
        config: Path | None,
        score: float,
        device: str,
        classes: Collection[int] | None,
    ) -> None:
        import torch

        from zarrmask.detection.load import load_detector

        if device == "cpu":
            torch.set_num_threads(1)
        self._detector: Detector = load_detector(
            checkpoint, config, device=device, score_threshold=score
        )
        self._classes = classes

    def input(self) -> NetworkInput:
        """How a slice becomes what the network sees."""
        return self._detector.network_input

    def detect(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        found = self._detector.detect(images, sizes)
        if self._classes is None:
            return found
        return [every.of_classes(self._classes) for every in found]


def gpus_here() -> list[str]:
    """Identities of the GPUs that this process sees, in the order of their numbers."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]


def placement(gpus: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Where detectors go: one a GPU, on a worker that sees it; without GPUs one a worker.

    Parameters
    ----------
    gpus : mapping
        Worker's address to the identities of the GPUs it sees. Workers on one machine may see the
        same ones.

    Returns
    -------
    list of (worker, device)

    Examples
    --------
    >>> placement({"a": ["gpu0", "gpu1"], "b": ["gpu0", "gpu1"], "c": []})
    [('a', 'cuda:0'), ('b', 'cuda:1')]
    >>> placement({"a": [], "b": []})
    [('a', 'cpu'), ('b', 'cpu')]
    """
    seen_by: dict[str, list[tuple[str, str]]] = {}
    for worker, identities in gpus.items():
        for number, identity in enumerate(identities):
            seen_by.setdefault(identity, []).append((worker, f"cuda:{number}"))
    if not seen_by:
        return [(worker, "cpu") for worker in gpus]
    places: list[tuple[str, str]] = []
    for candidates in seen_by.values():
        taken = [worker for worker, _ in places]
        places.append(min(candidates, key=lambda place: taken.count(place[0])))
    return places


def start_detectors(
    client: Client,
    checkpoint: Path,
    config: Path | None,
    score: float,
    classes: Collection[int] | None = None,
) -> list[Any]:
    """Start the detectors and wait until their weights are loaded; see `DetectorActor`.

    Returns
    -------
    list of distributed.Actor
        They live as long as these are held.

    Raises
    ------
    CheckpointError
        From the workers, where the checkpoint cannot be loaded.
    ZarrmaskError
        Where workers die of it.
    """
    for _ in range(ATTEMPTS):
        try:
            client.wait_for_workers(1, timeout=PATIENCE)  # a lost one may be on its way back
            places = placement(client.run(gpus_here))
        except (OSError, TimeoutError):
            continue
        futures = [
            client.submit(
                *(DetectorActor, checkpoint, config, score, device, classes),
                actor=True,
                workers=[worker],
                pure=False,
            )
            for worker, device in places
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
        "workers die, or do not come, while the detector is loaded, most likely for want of "
        "memory; use fewer --workers, then run the same command again"
    )


def nearest(detectors: Sequence[Any], turn: int) -> Any:
    """Choose the detector on this worker if there is one, else take turns."""
    here = get_worker().address
    local = [detector for detector in detectors if detector._address == here]
    pool = local or detectors
    return pool[turn % len(pool)]
