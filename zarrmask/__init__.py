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

__all__ = ["ZarrmaskError", "__version__", "convert", "open_pyramid", "open_stack", "run"]

if TYPE_CHECKING:
    from zarrmask.errors import ZarrmaskError
    from zarrmask.pipeline import convert, run
    from zarrmask.pyramid import open_pyramid
    from zarrmask.stack import open_stack

_HOMES = {
    "ZarrmaskError": "zarrmask.errors",
    "convert": "zarrmask.pipeline",
    "open_pyramid": "zarrmask.pyramid",
    "open_stack": "zarrmask.stack",
    "run": "zarrmask.pipeline",
}


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker that only writes bricks need not load the rest."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zarrmask' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
