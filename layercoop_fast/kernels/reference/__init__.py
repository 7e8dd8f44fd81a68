"""The formula of every operation, written once in plain torch and NumPy: what the fast versions are tested against.

Nothing here calls the C++ core or Triton, and nothing is tuned. Each function states its formula, shapes, dtypes and
source. The files of `kernels/` check arguments and choose between C++, Triton and these functions.
"""
