"""The road from a request to a pruned checkpoint, stage by stage."""
