"""What a network learns from at once: a few images, and what is on each.

A source of batches is a `Dataset` from an iteration's number to its batch, which depends on nothing
else: whatever process makes it, and wherever a training was stopped, iteration n sees the same.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zarrmask.errors import TrainingError, ZarrmaskError

Target: TypeAlias = dict[str, Tensor]
Batch: TypeAlias = tuple[list[Tensor], list[Target]]


def example(
    image: NDArray[np.uint8] | NDArray[np.float32],
    masks: NDArray[np.uint8],
    categories: NDArray[np.int64],
    margin: float = 0.0,
) -> tuple[Tensor, Target]:
    """Give an image and what is on it as `network.build_model` wants them.

    Parameters
    ----------
    image : ndarray (y, x)
        Grey values 0 to 255.
    masks : ndarray of uint8, (n, y, x)
        0 and 1, one for each object. One without a pixel is left out.
    categories : ndarray of int64, (n,)
        Counted from 0.
    margin : float
        Share of its sides by which a box is larger than what is in it.

    Returns
    -------
    image : Tensor of float32, (1, y, x)
    target : dict
        `boxes`, `labels`, `masks`.
    """
    there = masks.any((1, 2))
    masks = np.ascontiguousarray(masks[there])
    target = {
        "boxes": boxes_of(masks, margin),
        "labels": torch.from_numpy(categories[there]) + 1,
        "masks": torch.from_numpy(masks),
    }
    return torch.from_numpy(np.ascontiguousarray(image, np.float32))[None], target


def boxes_of(masks: NDArray[np.uint8], margin: float = 0.0) -> Tensor:
    """Boxes x0, y0, x1, y1 around masks (n, h, w), none of them empty; float32 (n, 4).

    Larger than that by a share of their sides, within the image.
    """
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask)
        more, higher = width * margin / 2, height * margin / 2
        box[:2] = max(0, x - more), max(0, y - higher)
        box[2:] = np.minimum((x + width + more, y + height + higher), mask.shape[::-1])
    return torch.from_numpy(boxes)


def stream(source: Dataset[Batch], start: int, stop: int, workers: int) -> Iterator[Batch]:
    """Give the batches of some iterations in order, made by so many processes (0: in between).

    Raises
    ------
    TrainingError
        If such a process dies. Whatever else hinders it is raised here as it was there.
    """
    loader: DataLoader[Any] = DataLoader(
        _Telling(source),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_settle,
        collate_fn=_as_it_is,
    )
    try:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            "a process that makes batches died, most likely for want of memory; take fewer "
            "(--workers) or smaller images, then the same command goes on from the last checkpoint"
        ) from None


@dataclass(frozen=True)
class _Telling(Dataset[Batch | Exception]):
    """Gives what went wrong instead of raising it, which would add the traceback to its text."""

    source: Dataset[Batch]

    def __getitem__(self, iteration: int) -> Batch | Exception:
        try:
            return self.source[iteration]
        except (ZarrmaskError, OSError, ValueError, MemoryError) as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _settle(_worker: int) -> None:
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):  # who trains ends what makes batches
        signal.signal(number, signal.SIG_IGN)
