"""The llama block: its description, and the versions of it that run."""
