"""The game: players, masks, calibration text, worths, and the model that plays it."""
