"""How grey values are seen by the detector and written to the outputs, settled once for a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.inputs import Window
from zarrmask.errors import SettingsError
from zarrmask.grey import Rescaling, auto_window, clipped, shows, uses_little
from zarrmask.progress import Reporter
from zarrmask.settings import Settings

DARK = (
    "use less than an eighth of their grey range, so their high byte shows the detector next to "
    "nothing; --detect-window auto spreads what they use"
)
"""What to warn of where `grey.uses_little`."""
WHITE, CLIPPED = 0.5, 0.99
"""Shares of a stack: more of it is not to be made white, or black and white."""


class Sample(Protocol):
    """Gives some grey values of a stack, (n,) of its dtype."""

    def __call__(self, *, finest: bool) -> NDArray:
        """As they are stored; or, of a pyramid, as the detector sees them, from a coarse level."""


@dataclass(frozen=True)
class Contrast:
    """Windows of a stack's grey values.

    Attributes
    ----------
    detected : "seed" or (lo, hi)
        What the detector's 8 bits span; "seed" is the high byte.
    written : (lo, hi) or None
        What the outputs' grey values span; None leaves them as they are.
    doubts : tuple of str
        What may not be as it was meant.
    """

    detected: Window
    written: tuple[float, float] | None
    doubts: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Contrast:
        """Take what `dataclasses.asdict` gave, by way of JSON."""
        written = entry["written"]
        return cls(
            _as_window(entry["detected"]),
            None if written is None else (written[0], written[1]),
            tuple(entry["doubts"]),
        )


def detected_window(record: Mapping[str, Any]) -> Window:
    """What the detector's 8 bits spanned, by a finished record."""
    return _as_window(record["detect_window"])


def _as_window(entry: Any) -> Window:
    return "seed" if entry == "seed" else (entry[0], entry[1])


def choose_contrast(
    dtype: np.dtype, settings: Settings, sample: Sample, *, detecting: bool
) -> Contrast:
    """Settle the windows, from a sample of grey values where the settings leave them open.

    Parameters
    ----------
    dtype : dtype
        The stack's.
    settings : Settings
    sample : Sample
        Called only for what is needed.
    detecting : bool
        Whether a detector is to see the stack.
    """
    written = settings.window
    doubts = []
    if written == "auto":
        written = auto_window(sample(finest=True))
    elif written is not None:
        doubts.append(_doubt(written, sample(finest=True)))
    detected: Window = "seed"
    if isinstance(settings.detect_window, tuple):
        detected = settings.detect_window
    elif detecting and settings.detect_window == "auto":
        detected = auto_window(sample(finest=False))
    elif dtype.kind != "u" and written is not None:
        detected = written  # the high byte of what is written
    elif detecting and dtype == np.uint16:
        doubts.append(f"the slices {DARK}" if uses_little(sample(finest=False)) else "")
    return Contrast(detected, written, tuple(filter(None, doubts)))


def _doubt(window: tuple[float, float], values: NDArray) -> str:
    """What to warn of where a window leaves little of a sample in the outputs; else nothing.

    Air may be most of a stack, and black; what is white should be little.
    """
    black, white = clipped(values, window)
    if white <= WHITE and black + white <= CLIPPED:
        return ""
    low, high = auto_window(values)
    return (
        f"--window {window[0]:g} {window[1]:g} makes {black:.0%} of the stack black and "
        f"{white:.0%} white, by a sample; nearly all of it lies between {low:,g} and {high:,g}"
    )


def settle_contrast(
    once: Callable[[str, Callable[[], Any]], Any],
    dtype: np.dtype,
    settings: Settings,
    sample: Sample,
    reporter: Reporter,
    *,
    detecting: bool,
) -> Contrast:
    """Choose the windows, and warn of what a detector misses; see `choose_contrast`.

    Parameters
    ----------
    once : callable
        Keeps a choice for all sessions of a work; see `zarrmask.records.journal.Journal.once`.
    dtype, settings, sample, detecting
        See `choose_contrast`.
    reporter : Reporter
    """
    contrast = Contrast.from_json(
        once(
            "contrast",
            lambda: asdict(choose_contrast(dtype, settings, sample, detecting=detecting)),
        )
    )
    for doubt in contrast.doubts:
        reporter.warn(doubt)
    return contrast


def samples_needed(dtype: np.dtype, settings: Settings, *, detecting: bool) -> list[bool]:
    """Say of each sample that windows are settled from whether it is the finest.

    See `choose_contrast`.
    """
    high_byte = settings.detect_window == "seed" and dtype == np.uint16
    seen = detecting and (settings.detect_window == "auto" or high_byte)
    return [True] * (settings.window is not None) + [False] * seen


def rescaling(
    dtype: np.dtype, settings: Settings, window: tuple[float, float] | None
) -> Rescaling | None:
    """What becomes of the stack's grey values in the outputs; without a window they stay."""
    return None if window is None else Rescaling(*window, output_dtype(dtype, settings))


def output_dtype(dtype: np.dtype, settings: Settings) -> str:
    """Dtype of volume and masked volume.

    Raises
    ------
    SettingsError
        Where grey values would have to change, and nobody said how; where a window lies beyond all
        that the stack can have.
    """
    _require_within(dtype, settings)
    wanted = settings.dtype or (str(dtype) if dtype.kind == "u" else "uint16")
    if settings.window is None and wanted != dtype:
        raise SettingsError(
            f"the stack is {dtype} and is to be written as {wanted}: say which of its grey values "
            "are to become black and white, --window LO HI, or --window auto for percentiles"
        )
    return wanted


def _require_within(dtype: np.dtype, settings: Settings) -> None:
    if dtype.kind == "f":
        return
    least, greatest = np.iinfo(dtype).min, np.iinfo(dtype).max
    for name, window in (("window", settings.window), ("detect-window", settings.detect_window)):
        if isinstance(window, tuple) and not shows(window, least, greatest):
            raise SettingsError(
                f"--{name} {window[0]:g} {window[1]:g} shows nothing of a stack of {dtype}, whose "
                f"grey values are {least} to {greatest}"
            )
