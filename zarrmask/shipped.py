"""The checkpoints and configs that come with zarrmask.

In a checkout they lie beside the package, in a wheel inside it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE / "_shipped" if (_PACKAGE / "_shipped").is_dir() else _PACKAGE.parent

CHECKPOINTS = _ROOT / "checkpoints"
CONFIGS = _ROOT / "configs"
DEFAULT_CHECKPOINT = CHECKPOINTS / "phantom_r18.safetensors"
