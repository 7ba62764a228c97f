"""Imported first, it imports torchvision without torch's compiler.

torchvision wants of the compiler one answer, where ROI align has to be deterministic on a GPU, and
imports it for that with all that it needs: several times as long as torchvision itself takes, and
150 MB in each detector's process. Here the compiler is imported when it is asked.
https://github.com/pytorch/vision/pull/8436
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_NAME = "torch._dynamo.utils"


class _Later(ModuleType):
    """Stands for the compiler's module: whatever is asked of it, that is imported first."""

    def is_compile_supported(self, device_type: str) -> Any:
        return _compiler().is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's import system asks for a package's
            raise AttributeError(name)
        return getattr(_compiler(), name)


def _compiler() -> Any:
    _make_way()
    return import_module(_NAME)


def _make_way() -> None:
    if isinstance(sys.modules.get(_NAME), _Later):
        del sys.modules[_NAME]


if _NAME not in sys.modules and "torchvision" not in sys.modules:
    sys.modules[_NAME] = _Later(_NAME)
    try:
        import_module("torchvision")
    finally:
        _make_way()
