"""One file an operation: a readable oracle in plain NumPy or torch beside the fast versions, and the choice of one."""
