"""Scores of masks on tasks of the LM Evaluation Harness (the extra `score`)."""
