"""The detector of a run: its checkpoint, the config that goes with it, and its actors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from distributed import Client

from zarrmask.detection.actors import DetectorSpec
from zarrmask.detection.config import (
    ModelConfig,
    interpret,
    read_fields,
    require_classes,
    stated_keys,
)
from zarrmask.detection.config_file import Document, read_documents
from zarrmask.detection.files import config_file, format_of, guessed
from zarrmask.detection.inputs import NetworkInput
from zarrmask.detection.shapes import infer_documents
from zarrmask.planning.forecast import Network
from zarrmask.progress import Reporter
from zarrmask.settings import Settings
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.workers.detectors import Detectors

if TYPE_CHECKING:
    from zarrmask.detection.devices import Kind


def find_checkpoint(settings: Settings) -> Path:
    """The checkpoint of a run: its own, or the bundled one.

    Raises
    ------
    ZarrmaskError
        Where it is not there, or lacks a class that is asked for.
    """
    checkpoint = settings.checkpoint or DEFAULT_CHECKPOINT
    format_of(checkpoint)  # refuses what is none, before anybody is waited for
    if settings.classes is not None:
        if file := config_file(checkpoint, settings.model):
            documents = read_documents(file)
        else:
            from zarrmask.detection.checkpoint import read_checkpoint  # it takes torch

            documents = infer_documents(read_checkpoint(checkpoint).shapes, str(checkpoint))
        (count,) = read_fields(documents, str(file or checkpoint), "classes")
        require_classes(settings.classes, count, str(checkpoint))
    return checkpoint


def config_identity(settings: Settings, checkpoint: Path) -> str | None:
    """Hash what a checkpoint's config states that may change the result; None: it has no config.

    Defaults do not count, so that a key that is understood one day makes no run another.

    Raises
    ------
    CheckpointError
        If it is not understood.
    """
    documents, source = _stated(settings, checkpoint)
    if not documents:
        return None
    config = _understood(settings, documents, source)
    told = stated_keys(config) if isinstance(config, ModelConfig) else config
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def network_of(settings: Settings, checkpoint: Path) -> Network:
    """What of a run's detector there is to know before it is loaded.

    Raises
    ------
    CheckpointError
        If its config is not understood.
    """
    documents, source = _stated(settings, checkpoint)
    _understood(settings, documents, source)
    seen = NetworkInput(*read_fields(documents, source, "min_size", "max_size", "look_closer"))
    return Network(checkpoint.stat().st_size, seen, settings.mirrored)


def _stated(settings: Settings, checkpoint: Path) -> tuple[list[Document], str]:
    """What the config that goes with a checkpoint states, if there is one, and what to call it."""
    file = config_file(checkpoint, settings.model)
    return read_documents(file) if file else [], str(file)


def _understood(settings: Settings, documents: list[Document], source: str) -> object:
    if documents and settings.backend == "torchvision":  # detectron2 understands more
        return interpret(documents, source)
    return documents


def detectors_of(
    client: Client,
    settings: Settings,
    checkpoint: Path,
    reporter: Reporter,
    patience: float,
    kind: Kind | None = None,
) -> Detectors:
    """The detectors of a run, none of which is loaded yet; see `Detectors`."""
    if warning := guessed(checkpoint, settings.model):
        reporter.warn(warning)
    spec = DetectorSpec(
        checkpoint,
        settings.model,
        settings.score,
        settings.classes,
        settings.backend,
        settings.precision,
        settings.threads,
        settings.batch,
        settings.mirrored,
    )
    return Detectors(client, spec, reporter, settings.device, kind, patience)
