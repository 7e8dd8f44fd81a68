"""Closed-form repair: the weights before each removed run are refitted to stand in for it, and stay plain weights."""
