"""Each promise of speed as a ratio, measured against the alternatives in one run: `python -m benchmarks`."""
