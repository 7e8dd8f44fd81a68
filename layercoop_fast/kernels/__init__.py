"""The operations of the engine, one file each: it checks arguments and chooses what computes them.

The choices are the C++ core, a Triton kernel (`gpu/`), or the formula in plain torch and NumPy (`reference/`). Every
fast version is tested against its formula.
"""
