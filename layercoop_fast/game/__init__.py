"""Games on a model: utilities, known scores, stores, worths, and what measuring costs."""
