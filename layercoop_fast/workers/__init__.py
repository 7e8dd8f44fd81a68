"""Many workers for one game: cutting masks into tasks, handing these out, and what carries the messages."""
