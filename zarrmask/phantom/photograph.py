"""What somebody may have made of a slice before it comes to us: window, stretch, labels, JPEG."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.phantom.noise import Array

Grey = NDArray[np.uint8]


def photograph(rng: np.random.Generator, image: Array) -> Grey:
    """Store a slice as people do.

    Parameters
    ----------
    rng : numpy.random.Generator
    image : ndarray of float32, shape (h, w)
        Grey values, about 0 to 1.

    Returns
    -------
    ndarray of uint8, shape (h, w)
    """
    u = rng.uniform
    low, high = u(-0.05, 0.05), 1 / u(0.8, 1.25)
    if rng.random() < 0.35:  # stretched until its darkest and brightest pixels are lost
        low, top = np.percentile(image, [u(0, 4), 100 - u(0, 4)])
        high = max(float(top - low), 0.1)  # a window is a stack's: air alone does not make one
    image = np.clip((image - np.float32(low)) * np.float32(1 / high), 0, 1)
    if rng.random() < 0.4:
        image = image ** np.float32(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.04:
        image = 1 - image
    grey = np.asarray(image * np.float32(255), np.uint8)
    if rng.random() < 0.07:  # contrast evened out from place to place
        tiles = int(rng.integers(2, 9))
        grey = np.asarray(cv2.createCLAHE(u(1, 4), (tiles, tiles)).apply(grey), np.uint8)
    if rng.random() < 0.2:
        for _ in range(int(rng.integers(1, 7))):
            _mark(rng, grey)
    if rng.random() < 0.35:
        _, packed = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(u(30, 95))])
        grey = np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.uint8)
    return grey


def _mark(rng: np.random.Generator, grey: Grey) -> None:
    """Draw what a person or a viewer draws over a slice, anywhere: it hides nothing that counts."""
    u = rng.uniform
    height, width = grey.shape
    value = int(rng.choice([255, 0, u(0, 256)], p=[0.6, 0.2, 0.2]))
    thick = int(rng.integers(1, 4))
    place, other = ((int(u(0, 1) * width), int(u(0, 1) * height)) for _ in range(2))
    reach = int(u(0.02, 0.4) * min(height, width)) + 1
    kind = str(rng.choice(["text", "bar", "line", "arrow", "trace", "ellipse", "box"]))
    if kind == "text":
        words = f"z {rng.integers(20000)} {u(0, 9):.2f} mm"
        cut = int(rng.integers(1, len(words) + 1))
        cv2.putText(
            grey, words[:cut], (place[0] // 2, place[1]), cv2.FONT_HERSHEY_SIMPLEX, u(0.3, 0.8),
            value, 1, cv2.LINE_AA,
        )  # fmt: skip
    elif kind == "bar":
        end = (place[0] + reach, place[1] + 1 + thick)
        cv2.rectangle(grey, place, end, value, cv2.FILLED)
    elif kind == "line":
        cv2.line(grey, place, other, value, thick, cv2.LINE_AA)
    elif kind == "arrow":
        cv2.arrowedLine(grey, place, other, value, thick, cv2.LINE_AA, tipLength=u(0.05, 0.4))
    elif kind == "trace":  # along a sheet, as segmentations are shown
        angle = np.linspace(0, u(0.5, 20), 200) + u(0, 2 * np.pi)
        away = reach * np.linspace(u(0.3, 1), 1, 200) * (1 + 0.1 * np.sin(angle * u(1, 5)))
        line = np.stack([np.cos(angle), np.sin(angle) * u(0.6, 1)], axis=1) * away[:, None]
        line += (
            width / 2 + 0.3 * (place[0] - width / 2),
            height / 2 + 0.3 * (place[1] - height / 2),
        )
        cv2.polylines(grey, [line.astype(np.int32)], False, value, thick, cv2.LINE_AA)
    elif kind == "ellipse":
        axes = (reach, max(int(reach * u(0.4, 1)), 1))
        cv2.ellipse(grey, place, axes, u(0, 180), 0, 360, value, thick, cv2.LINE_AA)
    else:
        cv2.rectangle(
            grey, place, (place[0] + reach, place[1] + int(reach * u(0.3, 2))), value, thick
        )
