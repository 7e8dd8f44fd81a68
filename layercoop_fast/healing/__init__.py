"""Distillation of a pruned checkpoint from the full model."""
