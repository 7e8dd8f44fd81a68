"""Reading files that others wrote: each format through one function, bounded, with one line for what is wrong."""
