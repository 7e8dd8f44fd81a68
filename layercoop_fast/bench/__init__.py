"""`layercoop-fast bench`: running the benchmarks of the source tree, keeping what they measured, comparing two runs."""
