"""What each player is worth: exact and sampled Shapley values, and the published stratified marginals, of any game."""
