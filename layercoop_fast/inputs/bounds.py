"""The largest inputs that are taken. A file or a request that names a larger number is refused before it is used."""

MAX_PLAYERS = 65_536
"""Players of a game, units of a model and numbers of blocks: a mask of so many takes 8 KiB as bits."""

MAX_JSON_BYTES = 2**26
"""A JSON file that is read as a whole."""

MAX_TEXT_BYTES = 2**30
"""A text file or a file of items."""
