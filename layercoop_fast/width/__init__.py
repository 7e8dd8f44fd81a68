"""Width pruning, as a rival in tables: heads and channels go instead of layers."""
