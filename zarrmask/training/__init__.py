"""Training a detector, on simulated slices or on annotated ones.

A `Lesson` is what is learned: a network, a recipe, batches. `loop.train` learns it; where batches
come from (`simulated`, `annotated`) makes no difference to it.
"""

METRICS = "metrics.json"
"""A training's figures, line by line, in its folder; detectron2's name."""
