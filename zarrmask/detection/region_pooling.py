"""ROIAlign, on a processor as weighted sums of rows, which takes a fraction of the time.

What is pooled at a place is a weighted sum of the features of some pixels. Channels-last, these are
rows of a table, and `torch.nn.functional.embedding_bag` sums rows with all threads and wide
registers; torchvision's kernel goes channel by channel, on one thread.

ROIAlign: He et al., "Mask R-CNN", ICCV 2017, arXiv:1703.06870; `aligned`, as detectron2 has it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision.ops import roi_align

AT_ONCE = 2**20
"""Pixels, one for each place that they are summed at, that are listed at a time."""


def pool_regions(
    features: Tensor,
    rois: Tensor,
    size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool regions of feature maps, as `torchvision.ops.roi_align` does.

    Parameters
    ----------
    features : (images, channels, h, w) float32
        On a processor fastest where it is channels-last.
    rois : (n, 5) float32
        The image's number, and x0, y0, x1, y1 in pixels of the image.
    size : (int, int)
        Height and width of what comes out.
    spatial_scale : float
        Pixels of a feature map for each of the image.
    sampling_ratio : int
        Samples along each side of a cell; 0: as many as it has pixels, rounded up.
    aligned : bool
        Whether pixel centres lie at halves.

    Returns
    -------
    (n, channels, height, width) float32
    """
    if features.device.type != "cpu":
        pooled: Tensor = roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)
        return pooled
    _, channels, height, width = features.shape
    table = features.permute(0, 2, 3, 1).reshape(-1, channels)
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    starts = corners[:, :2].flip(1)  # y, x
    sides = corners[:, 2:].flip(1) - starts
    if not aligned:
        sides = sides.clamp(min=1.0)
    cells = sides / torch.tensor(size)
    samples = torch.full_like(cells, sampling_ratio) if sampling_ratio > 0 else cells.ceil()
    samples = samples.long()
    image = rois[:, 0].long() * (height * width)

    places = size[0] * size[1]
    pooled = table.new_zeros((len(rois), places, channels))
    for count in samples.unique(dim=0).tolist():
        if min(count) < 1:  # nothing is seen of a flat region
            continue
        alike = torch.where((samples == torch.tensor(count)).all(1))[0]
        for here in alike.split(max(1, AT_ONCE // (places * 4 * count[0] * count[1]))):
            rows, columns = (
                _pixels(starts[here, axis], cells[here, axis], size[axis], count[axis], length)
                for axis, length in enumerate((height, width))
            )
            summed = _summed(table, image[here], width, rows, columns)
            pooled[here] = summed / (count[0] * count[1])
    return pooled.view(-1, *size, channels).permute(0, 3, 1, 2)


def _summed(
    table: Tensor,
    first: Tensor,
    width: int,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
) -> Tensor:
    """Sum all samples of every cell of regions whose cells have equally many.

    Parameters
    ----------
    table : (pixels, channels) float32
    first : (n,) int64
        Where in the table each region's image begins.
    width : int
        Of an image, pixels.
    rows, columns : pair of (n, cells, pixels)
        See `_pixels`.

    Returns
    -------
    (n, cells, channels) float32
    """
    (y, weight_y), (x, weight_x) = rows, columns
    pixels = (first[:, None, None] + y * width)[:, :, None, :, None] + x[:, None, :, None, :]
    weights = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    return F.embedding_bag(
        pixels.flatten(3).flatten(0, 2),
        table,
        per_sample_weights=weights.flatten(3).flatten(0, 2),
        mode="sum",
    ).view(len(first), -1, table.shape[1])


def _pixels(
    start: Tensor, cell: Tensor, cells: int, samples: int, length: int
) -> tuple[Tensor, Tensor]:
    """Along one axis, the pixels that each cell's samples are interpolated from, and how much.

    Parameters
    ----------
    start, cell : (n,) float32
        Where regions begin and how long a cell is, pixels.
    cells, samples : int
        Cells a region, samples a cell.
    length : int
        Pixels there are.

    Returns
    -------
    pixels : (n, cells, 2 * samples) int64
    weights : the same, float32
        1 for each sample in all, 0 for one that lies outside.
    """
    side = cell[:, None, None]
    place = start[:, None, None] + torch.arange(cells)[:, None] * side
    place = place + (torch.arange(samples) + 0.5) * side / samples
    there = ((place >= -1) & (place <= length)).to(place.dtype)
    place = place.clamp(0, length - 1)
    below = place.floor()
    above = (below + 1).clamp(max=length - 1)
    part = place - below
    pixels = torch.cat([below, above], -1).long()
    return pixels, torch.cat([(1 - part) * there, part * there], -1)
