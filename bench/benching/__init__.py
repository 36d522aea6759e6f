"""What the benchmarks share: realistic objects, an API server of paper, load, readings, tables."""
