"""From a checkpoint file to a detector."""

import zarrmask.detection.torchvision_alone  # isort: skip  # noqa: F401

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from zarrmask.detection.checkpoint import read_checkpoint
from zarrmask.detection.config import ModelConfig
from zarrmask.detection.detections import Detections, on_slice
from zarrmask.detection.devices import find_device, has_bfloat16, repeatable
from zarrmask.detection.heads import RegionLook
from zarrmask.detection.inputs import NetworkInput
from zarrmask.detection.mirroring import MeanLook, View, views_of
from zarrmask.detection.names import is_weight
from zarrmask.detection.network import PADDED_TO, build_model
from zarrmask.detection.precision import Precision, fold_norms, to_bfloat16
from zarrmask.detection.protocol import Detector
from zarrmask.detection.shapes import config_of, documents_of
from zarrmask.detection.weights import load_weights, require_finite
from zarrmask.errors import SettingsError

Backend: TypeAlias = Literal["torchvision", "detectron2"]


def load_detector(
    checkpoint: Path,
    config: Path | None = None,
    *,
    backend: Backend = "torchvision",
    precision: Precision = "full",
    device: str = "cpu",
    score_threshold: float | None = None,
    batch: int = 1,
    mirrored: bool = False,
) -> Detector:
    """Load a detectron2 Mask R-CNN.

    Parameters
    ----------
    checkpoint : Path
        See `read_checkpoint`.
    config : Path, optional
        The detectron2 config it was trained with. Without one, the file of the same name beside
        the checkpoint that ends in `.yaml`; without that, the shapes of the weights tell it.
    backend : "torchvision" or "detectron2"
        Who runs it: zarrmask's own network, or the detectron2 that is installed.
    precision : "full" or "fast"
        float32, or (torchvision) bfloat16 where most of the time goes.
    device : str
        "auto", "cpu", "cuda" or "mps", or as torch names it: "cuda:1".
    score_threshold : float, optional
        Only what scores above is found. Without one, the config's, or 0.05.
    batch : int
        Slices that go through the network together; detectron2 takes each alone.
    mirrored : bool
        Whether a slice's mirror images are looked at too, and what is said of a place is averaged;
        see `zarrmask.detection.mirroring`.

    Raises
    ------
    CheckpointError
        If checkpoint or config cannot be used, or do not fit each other.
    SettingsError
        If backend, precision or device is not to be had here.
    """
    place = find_device(device)
    weights = read_checkpoint(checkpoint)
    source = str(checkpoint)
    if backend == "detectron2":
        from zarrmask.detection.detectron2_backend import Detectron2Detector

        if precision != "full":
            raise SettingsError("--precision fast is zarrmask's own; detectron2 knows full only")
        own = {name: tensor for name, tensor in weights.tensors.items() if is_weight(name)}
        require_finite(own, source)
        documents = documents_of(checkpoint, weights.shapes, config)
        return Detectron2Detector(
            documents, weights, source, place, score_threshold, mirrored=mirrored
        )
    model_config = config_of(checkpoint, weights.shapes, config)
    if score_threshold is not None:
        model_config = replace(model_config, score_threshold=score_threshold)
    return MaskRCNNDetector(
        model_config, weights.tensors, source, place, precision, batch, mirrored=mirrored
    )


class MaskRCNNDetector:
    """detectron2's Mask R-CNN on torchvision; a `Detector`.

    Parameters
    ----------
    config : ModelConfig
    weights : mapping of str to Tensor
        In detectron2's names.
    source : str
        What to call the weights in an error.
    device : torch.device
    precision : "full" or "fast"
        See `load_detector`.
    batch : int
        Slices that go through the backbone together, always so many.
    mirrored : bool
        See `load_detector`.

    Raises
    ------
    SettingsError
        If the device has no bfloat16 and "fast" is asked for: masks must not depend on where they
        are made, so nothing else stands in.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        source: str,
        device: torch.device,
        precision: Precision = "full",
        batch: int = 1,
        *,
        mirrored: bool = False,
    ) -> None:
        if precision == "fast" and not has_bfloat16(device):
            raise SettingsError(
                f"--precision fast computes in bfloat16, which {device.type} on {platform.node()} "
                "does not; take --precision full, the default"
            )
        self.config = config
        self.device = device
        self.batch = batch
        self.views = views_of(mirrored)
        self.model = build_model(config)
        load_weights(self.model, weights, source)
        self.model.eval()
        fold_norms(self.model)
        if precision == "fast":
            to_bfloat16(self.model)
        self.model.to(device).to(memory_format=torch.channels_last)

    @property
    def network_input(self) -> NetworkInput:
        """How a slice becomes what the network sees."""
        config = self.config
        return NetworkInput(config.min_size, config.max_size, config.look_closer)

    @property
    def classes(self) -> int:
        """How many classes of objects it tells apart."""
        return self.config.classes

    @torch.inference_mode()
    def detect(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        found: dict[int, Detections] = {}
        for together in _padded_alike(images, self.batch):
            with repeatable(self.device):
                results = self._results([self._tensor(images[n]) for n in together])
            for n, result in zip(together, results, strict=True):
                found[n] = on_slice(
                    result["boxes"].cpu().numpy(),
                    result["scores"].cpu().numpy(),
                    result["labels"].cpu().numpy() - 1,
                    result["masks"].cpu().numpy()[:, 0],
                    seen=(images[n].shape[0], images[n].shape[1]),
                    size=sizes[n],
                )
        return [found[n] for n in range(len(images))]

    def _results(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """What the network finds on images that are padded alike: on each the same in any company.

        The backbone, which takes most of the time, gets as many as ever, blank ones if need be; the
        rest, whose sums depend on how many boxes there are in all, gets each for itself.
        """
        model: Any = self.model
        blanks = [torch.zeros_like(images[0])] * (self.batch - len(images))
        inputs, _ = model.transform([*images, *blanks])
        seen = [model.backbone(_mirrored(inputs, view)) for view in self.views]
        results = []
        for n, size in enumerate(inputs.image_sizes[: len(images)]):
            looks = [RegionLook.of_image(model.roi_heads, maps, n, size) for maps in seen]
            one = ImageList(inputs.tensors[n : n + 1], [size])
            (proposals,), _ = model.rpn(one, looks[0].features)
            look = MeanLook(list(zip(self.views, looks, strict=True)), size)
            results.append(model.roi_heads.detect(look, proposals, size))
        return results

    def _tensor(self, image: NDArray[np.uint8]) -> Tensor:
        """Give (1, h, w) or (3, h, w); the network makes three channels of one."""
        channels_last = image.reshape(*image.shape[:2], -1)
        return torch.tensor(channels_last, device=self.device).permute(2, 0, 1)


def _mirrored(inputs: ImageList, view: View) -> Tensor:
    """What the network sees of a view of its inputs: their padding stays right and below."""
    tensors = torch.zeros_like(inputs.tensors)
    for tensor, given, (height, width) in zip(
        tensors, inputs.tensors, inputs.image_sizes, strict=True
    ):
        tensor[:, :height, :width] = view.image(given[:, :height, :width])
    return tensors


def _padded_alike(images: Sequence[NDArray[np.uint8]], most: int) -> Iterator[list[int]]:
    """Numbers of the images that go together: padding beyond its own changes what is found."""
    batches: dict[tuple[int, ...], list[int]] = {}
    for n, image in enumerate(images):
        padded = tuple(-(-side // PADDED_TO) for side in image.shape[:2])
        batches.setdefault(padded, []).append(n)
    for alike in batches.values():
        yield from (alike[start : start + most] for start in range(0, len(alike), most))
