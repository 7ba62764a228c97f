"""The user's own detectron2 behind the same protocol; nothing else of zarrmask needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zarrmask.detection.checkpoint import Checkpoint
from zarrmask.detection.config import read_fields
from zarrmask.detection.config_file import Document
from zarrmask.detection.detections import Detections, on_slice
from zarrmask.detection.devices import repeatable
from zarrmask.detection.even_contrast import even
from zarrmask.detection.inputs import NetworkInput
from zarrmask.detection.mirroring import MIRRORED, MeanLook, Size
from zarrmask.detection.names import is_weight
from zarrmask.detection.weights import Misfit
from zarrmask.errors import CheckpointError, SettingsError

INSTALL = (
    "python -m pip install -U setuptools && python -m pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'"
)
_OURS = ("_BASE_", "ZARRMASK")
"""Of a config: what detectron2 is not shown."""


class Detectron2Detector:
    """A Mask R-CNN that detectron2 builds, fills and runs; a `Detector`.

    Its own readers would execute what a checkpoint or a config asks for: both are read as data
    here, and it gets tensors and plain values.

    Parameters
    ----------
    documents : sequence of Document
        Its config, the first of which takes precedence; any architecture of detectron2's with
        masks.
    weights : Checkpoint
    source : str
        What to call these in an error.
    device : torch.device
    score_threshold : float, optional
        Only what scores above is found; without one, the config's.
    mirrored : bool
        See `zarrmask.detection.load.load_detector`.

    Raises
    ------
    SettingsError
        If detectron2 is not installed.
    CheckpointError
        If it does not take the config, or the weights do not fit.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        weights: Checkpoint,
        source: str,
        device: torch.device,
        score_threshold: float | None = None,
        *,
        mirrored: bool = False,
    ) -> None:
        _require_detectron2()
        self.config = _config(documents, source)
        self._evens, self._closer = read_fields(documents, source, "even_contrast", "look_closer")
        self._device = device
        self.config.MODEL.DEVICE = str(device)
        if score_threshold is not None:
            self.config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score_threshold
        self.model = _model(self.config, source)
        self._mirrored = mirrored
        if mirrored:
            _require_standard_heads(self.model, source)
        _load(self.model, weights, source)

    @property
    def network_input(self) -> NetworkInput:
        """How a slice becomes what the network sees."""
        sides = self.config.INPUT
        return NetworkInput(sides.MIN_SIZE_TEST, sides.MAX_SIZE_TEST, self._closer)

    @property
    def classes(self) -> int:
        """How many classes of objects it tells apart."""
        return int(self.config.MODEL.ROI_HEADS.NUM_CLASSES)

    @torch.inference_mode()
    def detect(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """See `Detector.detect`."""
        return [
            self._detect(image, size)  # alone: padding to another's size would change what is found
            for image, size in zip(images, sizes, strict=True)
        ]

    def _detect(self, image: NDArray[np.uint8], size: tuple[int, int]) -> Detections:
        tensor = self._tensor(image)
        with repeatable(self._device):
            if self._mirrored:
                found = self._inference_mirrored(tensor)
            else:
                (found,) = self.model.inference([{"image": tensor}], do_postprocess=False)
        return on_slice(
            found.pred_boxes.tensor.cpu().numpy(),
            found.scores.cpu().numpy(),
            found.pred_classes.cpu().numpy(),
            found.pred_masks.cpu().numpy()[:, 0],
            seen=(image.shape[0], image.shape[1]),
            size=size,
        )

    def _inference_mirrored(self, tensor: torch.Tensor) -> Any:
        """What `inference` gives, of the tensor's mirror images too."""
        from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image

        model, size = self.model, (tensor.shape[-2], tensor.shape[-1])
        views = [{"image": view.image(tensor)} for view in MIRRORED]
        images = [model.preprocess_image([view]) for view in views]
        features = [model.backbone(image.tensor) for image in images]
        (proposed,), _ = model.proposal_generator(images[0], features[0], None)
        proposals = proposed.proposal_boxes.tensor
        looks = [_RegionLook(model.roi_heads, maps, size) for maps in features]
        look = MeanLook(list(zip(MIRRORED, looks, strict=True)), size)
        scores, boxes = look.boxes(proposals)
        predictor = model.roi_heads.box_predictor
        limits = (predictor.test_score_thresh, predictor.test_nms_thresh)
        found, _ = fast_rcnn_inference_single_image(
            boxes.flatten(1), scores, size, *limits, predictor.test_topk_per_image
        )
        found.pred_masks = look.masks(found.pred_boxes.tensor, found.pred_classes)
        return found

    def _tensor(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """Give three channels (3, h, w) in the config's order."""
        height, width = image.shape[:2]
        bgr = np.broadcast_to(image.reshape(height, width, -1), (height, width, 3))
        ordered = bgr[..., ::-1] if self.config.INPUT.FORMAT == "RGB" else bgr
        tensor = torch.from_numpy(ordered.transpose(2, 0, 1).astype(np.float32))
        return even(tensor) if self._evens else tensor


@dataclass(frozen=True)
class _RegionLook:
    """What detectron2's heads say of regions of one image; a `Look`."""

    heads: Any
    features: Any
    size: Size

    def boxes(self, proposals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Look.boxes`; the background's probability comes last."""
        from detectron2.structures import Boxes, Instances

        boxes = Boxes(proposals)
        levels = [self.features[level] for level in self.heads.box_in_features]
        said = self.heads.box_predictor(self.heads.box_head(self.heads.box_pooler(levels, [boxes])))
        regions = [Instances(self.size, proposal_boxes=boxes)]
        (scores,) = self.heads.box_predictor.predict_probs(said, regions)
        (found,) = self.heads.box_predictor.predict_boxes(said, regions)
        return scores, found.unflatten(1, (-1, 4))

    def masks(self, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See `Look.masks`."""
        from detectron2.structures import Boxes, Instances

        regions = Instances(self.size, pred_boxes=Boxes(boxes), pred_classes=labels)
        (found,) = self.heads.forward_with_given_boxes(self.features, [regions])
        masks: torch.Tensor = found.pred_masks
        return masks


def _require_standard_heads(model: Any, source: str) -> None:
    """Refuse to look at mirror images by heads that are asked otherwise."""
    from detectron2.modeling import StandardROIHeads

    if type(model.roi_heads) is not StandardROIHeads:
        raise CheckpointError(
            f"{source}: --mirrored goes with MODEL.ROI_HEADS.NAME StandardROIHeads, not "
            f"{type(model.roi_heads).__name__}; leave it out"
        )


def _require_detectron2() -> None:
    try:
        import detectron2.checkpoint
        import detectron2.modeling  # noqa: F401
    except Exception as error:  # one built for another torch may raise anything
        found = (
            "it is not installed"
            if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("detectron2")
            else f"it cannot be imported ({type(error).__name__}: {error})"
        )
        raise SettingsError(
            f"--backend detectron2 runs your own detectron2, and {found}. It has to be built where "
            f"it is to run, with a C++ compiler:\n  {INSTALL}\nYou do not need it: "
            "--backend torchvision, the default, reads the same checkpoints and gives the same "
            "masks."
        ) from None


def _config(documents: Sequence[Document], source: str) -> Any:
    from detectron2.config import CfgNode, get_cfg

    config = get_cfg()
    try:
        for document in reversed(documents):
            content = {key: value for key, value in document.items() if key not in _OURS}
            config.merge_from_other_cfg(CfgNode(content))
    except Exception as error:  # yacs raises and asserts as it likes
        raise CheckpointError(f"{source}: detectron2 does not take this config: {error}") from None
    if not config.MODEL.MASK_ON:
        raise CheckpointError(f"{source}: a model without masks; MODEL.MASK_ON must be True")
    return config


def _model(config: Any, source: str) -> Any:
    from detectron2.modeling import GeneralizedRCNN, build_model

    try:
        model = build_model(config)
    except Exception as error:  # as many kinds as there are architectures
        raise CheckpointError(
            f"{source}: detectron2 cannot build the model of this config: {error}"
        ) from None
    if not isinstance(model, GeneralizedRCNN):
        raise CheckpointError(
            f"{source}: MODEL.META_ARCHITECTURE is {config.MODEL.META_ARCHITECTURE}, must be "
            "GeneralizedRCNN: a model that finds boxes, and a mask in each"
        )
    return model.eval()


def _load(model: Any, weights: Checkpoint, source: str) -> None:
    """Let detectron2's checkpointer put tensors where they belong; it is given no file to read."""
    from detectron2.checkpoint import DetectionCheckpointer

    content = {**weights.metadata, "model": dict(weights.tensors)}
    misfit = DetectionCheckpointer(model, save_to_disk=False)._load_model(content)
    Misfit(
        tuple(filter(is_weight, misfit.missing_keys)),
        tuple(filter(is_weight, misfit.unexpected_keys)),
        {name: (tuple(given), tuple(own)) for name, given, own in misfit.incorrect_shapes},
    ).refuse(source)
