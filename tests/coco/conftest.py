"""Small COCO files with their images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import zarrmask

SQUARE = [10.0, 5.0, 30.0, 5.0, 30.0, 25.0, 10.0, 25.0]


class Files:
    """COCO annotations and images that a test spoils before it writes them.

    Attributes
    ----------
    content : dict
        The JSON; at first one image of 40 x 50 with a square of 20 x 20, and an empty one.
    pixels : dict
        Images by name.
    """

    def __init__(self, folder):
        self.json, self.images = folder / "annotations.json", folder / "images"
        self.pixels = {name: np.full((40, 50), 99, np.uint8) for name in ("a.png", "b.png")}
        self.content = {
            "categories": [{"id": 1, "name": "scroll"}],
            "images": [
                {"id": 1, "file_name": "a.png", "height": 40, "width": 50},
                {"id": 2, "file_name": "b.png", "height": 40, "width": 50},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [SQUARE], "iscrowd": 0}
            ],
        }

    @property
    def first(self):
        """The first annotation."""
        return self.content["annotations"][0]

    def mark(self, **entry):
        """Add an annotation of the first image."""
        marked = self.content["annotations"]
        marked.append({"id": 1 + len(marked), "image_id": 1, "category_id": 1, **entry})

    def write(self):
        self.json.write_text(json.dumps(self.content))
        self.images.mkdir(exist_ok=True)
        for name, image in self.pixels.items():
            (self.images / Path(name).parent).mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(self.images / name), image)
        return self.json, self.images


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest.fixture(scope="session")
def run(cluster, stack, tmp_path_factory):
    """A finished run of six keyframes: its folder, and its record."""
    out = tmp_path_factory.mktemp("coco") / "out"
    return out, zarrmask.run(stack, out, every=4, scheduler=cluster)
