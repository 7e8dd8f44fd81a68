"""How many rows a matrix product needs so that a row's result does not depend on the rows beside it."""

from __future__ import annotations

# torch's CPU kernels take another path for a handful of rows (measured: rows agree bitwise from 7 rows on, not below);
# whoever promises that a row is independent of its batch pads smaller batches up to this.
MIN_ROWS = 16
