"""The largest inputs that are taken. A file or a request that names a larger number is refused before it is used."""

MAX_PLAYERS = 65_536
"""Players of a game, units of a model and numbers of blocks: a mask of so many takes 8 KiB as bits."""

MAX_MASK_BITS = 10**10
"""Masks times players of one request: each takes a byte where masks are laid out."""

MAX_TOKENS = 2**31
"""Windows times tokens of a calibration."""

MAX_JSON_BYTES = 2**26
"""A JSON file that is read as a whole."""

MAX_TEXT_BYTES = 2**30
"""A text file or a file of items."""
