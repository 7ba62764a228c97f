"""Who does the work: clusters, their GPUs and detectors, and what becomes of those that die."""
