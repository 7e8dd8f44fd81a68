"""The machine, its processes and its signals."""
