"""From a checkpoint file to a detector."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import ModelConfig
from zarrmask.detection.detections import Detections
from zarrmask.detection.inputs import NetworkInput
from zarrmask.detection.network import PADDED_TO, build_model
from zarrmask.detection.shapes import config_of
from zarrmask.detection.weights import load_weights

_LOWEST_SCORE = 0.05  # detectron2's own SCORE_THRESH_TEST


def load_detector(
    checkpoint: Path,
    config: Path | None = None,
    *,
    device: str = "cpu",
    score_threshold: float | None = None,
) -> "MaskRCNNDetector":
    """Load a detectron2 Mask R-CNN.

    Parameters
    ----------
    checkpoint : Path
        See `read_checkpoint`.
    config : Path, optional
        The detectron2 config it was trained with. Without one, the file of the same name beside
        the checkpoint that ends in `.yaml`; without that, the shapes of the weights tell it.
    device : str
        As torch names it: "cpu", "cuda:0".
    score_threshold : float, optional
        Only what scores above is found. Without one, the config's, or 0.05.

    Raises
    ------
    CheckpointError
        If checkpoint or config cannot be used, or do not fit each other.
    """
    weights = read_checkpoint(checkpoint)
    model_config = config_of(checkpoint, weights.shapes, config)
    if score_threshold is None:
        score_threshold = model_config.score_threshold
    model_config = replace(
        model_config,
        score_threshold=_LOWEST_SCORE if score_threshold is None else score_threshold,
    )
    return MaskRCNNDetector(model_config, weights.tensors, str(checkpoint), device)


class MaskRCNNDetector:
    """detectron2's Mask R-CNN on torchvision; a `Detector`.

    Parameters
    ----------
    config : ModelConfig
    weights : mapping of str to Tensor
        In detectron2's names.
    source : str
        What to call the weights in an error.
    device : str
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], source: str, device: str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.model = build_model(config)
        load_weights(self.model, weights, source)
        self.model.eval().to(self.device).to(memory_format=torch.channels_last)

    @property
    def network_input(self) -> NetworkInput:
        """How a slice becomes what the network sees."""
        return NetworkInput(self.config.min_size, self.config.max_size)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        found: dict[int, Detections] = {}
        for batch in _padded_alike(images):
            results = self.model([self._tensor(images[n]) for n in batch])
            for n, result in zip(batch, results, strict=True):
                found[n] = _detections(result, images[n].shape[:2], sizes[n])
        return [found[n] for n in range(len(images))]

    def _tensor(self, image: NDArray[np.uint8]) -> Tensor:
        """Give (1, h, w) or (3, h, w); the network makes three channels of one."""
        channels_last = image.reshape(*image.shape[:2], -1)
        return torch.tensor(channels_last, device=self.device).permute(2, 0, 1)


def _padded_alike(images: Sequence[NDArray[np.uint8]]) -> Iterable[list[int]]:
    """Numbers of the images that may go together: padding beyond its own changes what is found."""
    batches: dict[tuple[int, ...], list[int]] = {}
    for n, image in enumerate(images):
        padded = tuple(-(-side // PADDED_TO) for side in image.shape[:2])
        batches.setdefault(padded, []).append(n)
    return batches.values()


def _detections(
    result: dict[str, Tensor], seen: tuple[int, ...], size: tuple[int, int]
) -> Detections:
    """Bring boxes to the slice's size; what lies outside of it is cut off or dropped."""
    height, width = size
    scale = np.array([width / seen[1], height / seen[0]] * 2, np.float32)
    boxes = result["boxes"].cpu().numpy() * scale
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, np.float32))
    solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(
        boxes[solid],
        result["scores"].cpu().numpy()[solid],
        result["labels"].cpu().numpy()[solid] - 1,
        result["masks"].cpu().numpy()[solid, 0],
    )
