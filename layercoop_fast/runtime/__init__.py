"""Running models under masks: many masks, one copy of the weights."""
