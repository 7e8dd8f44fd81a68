"""An OpenAI-compatible server: every mask of a model is a model, over one copy of the weights."""
