"""Volumes and the files they come in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

Volume = np.ndarray


@pytest.fixture(scope="session")
def volume() -> Volume:
    """Noise: any two voxels mixed up show."""
    return np.random.default_rng(5).integers(0, 65536, (5, 37, 53), dtype=np.uint16)


@pytest.fixture
def tiff_folder(tmp_path: Path, volume: Volume) -> Callable[..., Path]:
    """Write the volume as numbered TIFFs, from 8 so that 9 comes before 10."""

    def write(name: str = "stack", data: Volume = volume, **options: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for z, image in enumerate(data, start=8):
            tifffile.imwrite(folder / f"scan2_{z}.tif", image, **options)
        return folder

    return write


def write_images(folder: Path, data: Volume, suffix: str) -> Path:
    folder.mkdir()
    for z, image in enumerate(data):
        assert cv2.imwrite(str(folder / f"{z:03d}{suffix}"), image)
    return folder
