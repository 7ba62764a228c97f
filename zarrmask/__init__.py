"""Cut the scroll out of a micro-CT stack: slices in, masked OME-Zarr pyramids out.

Examples
--------
>>> import zarrmask
>>> stack = zarrmask.open_stack("slices/")  # doctest: +SKIP
>>> record = zarrmask.run("slices/", "out/", every=10)  # doctest: +SKIP
>>> levels = zarrmask.open_pyramid("out/masked.zarr")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zarrmask.errors import (
    AnnotationError,
    CheckpointError,
    OutputError,
    RoomError,
    SettingsError,
    StackError,
    TrainingError,
    ZarrmaskError,
)

if TYPE_CHECKING:
    from zarrmask.coco.evaluation import evaluate
    from zarrmask.coco.export import annotate
    from zarrmask.correcting.redo import redo
    from zarrmask.given.apply import apply
    from zarrmask.images.export import export
    from zarrmask.images.proxy import proxy
    from zarrmask.progress import Reporter
    from zarrmask.pyramid import open_pyramid
    from zarrmask.running.pipeline import convert, foresee, run
    from zarrmask.stack import open_stack

__version__ = "0.1.0"

__all__ = [
    "AnnotationError",
    "CheckpointError",
    "OutputError",
    "Reporter",
    "RoomError",
    "SettingsError",
    "StackError",
    "TrainingError",
    "ZarrmaskError",
    "__version__",
    "annotate",
    "apply",
    "convert",
    "evaluate",
    "export",
    "foresee",
    "open_pyramid",
    "open_stack",
    "proxy",
    "redo",
    "run",
]

_HOMES = {
    "Reporter": "zarrmask.progress",
    "annotate": "zarrmask.coco.export",
    "apply": "zarrmask.given.apply",
    "convert": "zarrmask.running.pipeline",
    "evaluate": "zarrmask.coco.evaluation",
    "export": "zarrmask.images.export",
    "foresee": "zarrmask.running.pipeline",
    "open_pyramid": "zarrmask.pyramid",
    "open_stack": "zarrmask.stack",
    "proxy": "zarrmask.images.proxy",
    "redo": "zarrmask.correcting.redo",
    "run": "zarrmask.running.pipeline",
}


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker that only writes bricks need not load the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zarrmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
