"""Finding the scroll in a slice: the detector, its checkpoints and configs.

Importing this package does not import torch: tasks without weights need only `inputs` and
`detections`.
"""
