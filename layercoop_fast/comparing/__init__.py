"""Methods compared on the same model, row by row."""
