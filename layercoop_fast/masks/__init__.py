"""Masks over players: their types, how they are drawn, and how people write them."""
