"""What `benchmarks/convert.py` measures: contestants, contests, and the programs they run."""
