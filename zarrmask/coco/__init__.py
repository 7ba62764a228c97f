"""COCO annotations: read to train from, written to be corrected, and compared with a detector."""

from zarrmask.coco.dataset import CocoDataset, CocoImage, Instance
from zarrmask.coco.reading import read_coco
from zarrmask.coco.region import Region

__all__ = ["CocoDataset", "CocoImage", "Instance", "Region", "read_coco"]
