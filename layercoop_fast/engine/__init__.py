"""Masked forward passes: any causal language model as embed, blocks and head, played along a plan."""
