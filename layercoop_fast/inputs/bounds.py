"""The largest inputs that are accepted. A file or a request that states more is refused before it is used."""

MAX_PLAYERS = 65_536
"""Players of a game, units of a model and numbers of blocks: a mask of this many players takes 8 KiB as bits."""

MAX_MASK_BITS = 10**10
"""Masks times players of one request: an array of masks takes a byte for each."""

MAX_TOKENS = 2**31
"""Windows times tokens of a calibration."""

MAX_JSON_BYTES = 2**26
"""A JSON file that is read as a whole."""

MAX_TEXT_BYTES = 2**30
"""A text file or a file of items."""
