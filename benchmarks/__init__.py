"""Speed, memory and FLOPs of this project beside the published recipe: `python -m benchmarks`."""
