"""Whether the C++ core of an installed wheel loads and computes, without torch: run on every wheel that is built."""

from __future__ import annotations

import numpy as np

import layercoop_fast
from layercoop_fast import _C


def main() -> None:
    """A product with packed weights, against numpy's."""
    assert layercoop_fast.__version__
    rows, columns, outputs = 3, 64, 96
    random = np.random.default_rng(0)
    x, weight = (random.standard_normal(shape, dtype=np.float32) for shape in ((rows, columns), (outputs, columns)))
    packed = _C.PackedMatrix("fp32", outputs, columns)
    packed.fill(0, weight, "fp32")
    out = np.empty((rows, outputs), dtype=np.float32)
    packed.multiply(x, out)
    np.testing.assert_allclose(out, x @ weight.T, rtol=1e-5, atol=1e-4)
    print(f"layercoop_fast {layercoop_fast.__version__}: {_C.isa()}, {_C.num_threads()} threads")


if __name__ == "__main__":
    main()
