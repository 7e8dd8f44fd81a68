"""A model under masks: plans, units, windows and scores."""
