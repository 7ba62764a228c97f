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

__version__ = "0.1.0"

__all__ = [
    "ZarrmaskError",
    "__version__",
    "apply",
    "convert",
    "export",
    "open_pyramid",
    "open_stack",
    "proxy",
    "redo",
    "run",
]

if TYPE_CHECKING:
    from zarrmask.correcting.redo import redo
    from zarrmask.errors import ZarrmaskError
    from zarrmask.given.apply import apply
    from zarrmask.images.export import export
    from zarrmask.images.proxy import proxy
    from zarrmask.pipeline import convert, run
    from zarrmask.pyramid import open_pyramid
    from zarrmask.stack import open_stack

_HOMES = {
    "ZarrmaskError": "zarrmask.errors",
    "apply": "zarrmask.given.apply",
    "convert": "zarrmask.pipeline",
    "export": "zarrmask.images.export",
    "open_pyramid": "zarrmask.pyramid",
    "open_stack": "zarrmask.stack",
    "proxy": "zarrmask.images.proxy",
    "redo": "zarrmask.correcting.redo",
    "run": "zarrmask.pipeline",
}


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker that only writes bricks need not load the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zarrmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
