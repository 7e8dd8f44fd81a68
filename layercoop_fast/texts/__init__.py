"""Texts and items: from a SPEC to windows of tokens."""
