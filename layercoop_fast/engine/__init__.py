"""Opening a model, and any causal language model seen as embedding, blocks and head."""
