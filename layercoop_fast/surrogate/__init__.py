"""The surrogate: a small network fitted to measured (mask, worth) pairs, itself a game."""
