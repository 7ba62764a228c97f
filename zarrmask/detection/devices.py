"""Where a network can run: the processor, or an accelerator, as torch names them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Literal, TypeAlias, get_args

import torch

from zarrmask.errors import SettingsError

Kind: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
"""What is asked for: "auto" takes an accelerator if there is one."""


def accelerators(kind: Kind = "auto") -> list[tuple[str, str]]:
    """Accelerators that this process sees.

    Returns
    -------
    list of (identity, device)
        The identity is the same in every process that sees the same one; the device is as torch
        names it here: "cuda:0", "mps".
    """
    found = []
    if kind in ("auto", "cuda") and torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            identity = str(torch.cuda.get_device_properties(number).uuid)
            found.append((identity, f"cuda:{number}"))
    if kind in ("auto", "mps") and torch.backends.mps.is_available():
        found.append((f"mps of {platform.node()}", "mps"))
    return found


def find_device(name: str) -> torch.device:
    """Give the device of a `Kind`, or of a name of torch's such as "cuda:1".

    Raises
    ------
    SettingsError
        If there is none here.
    """
    if name not in get_args(Kind):
        return torch.device(name)
    kind: Kind = name  # type: ignore[assignment]
    if found := accelerators(kind):
        return torch.device(found[0][1])
    if kind in ("auto", "cpu"):
        return torch.device("cpu")
    raise no_accelerator(kind)


def no_accelerator(kind: Kind) -> SettingsError:
    """What to say where the accelerator that was asked for is not there."""
    return SettingsError(
        f"--device {kind}: torch sees none here; take --device auto, which uses what there is, or "
        "install a torch that fits the driver"
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 (a processor without it would take ages)."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch asks of the current one
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    there = torch.backends.mkldnn.is_available()
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


_entering = Lock()
_inside = 0
_flags = ExitStack()


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Keep NVIDIA's convolutions from rounding float32 to 10 bits, which is their habit.

    And from algorithms that do not give the same each time. That holds for the whole process, as
    long as any of its threads is inside.
    """
    global _inside
    if device.type != "cuda":
        yield
        return
    with _entering:
        if not _inside:
            flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
            _flags.enter_context(flags)
        _inside += 1
    try:
        yield
    finally:
        with _entering:
            _inside -= 1
            if not _inside:
                _flags.close()
