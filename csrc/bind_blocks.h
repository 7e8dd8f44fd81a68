// Adds the kernels of blocks/blocks.h to the module; documented in _C.pyi.
#pragma once

#include <pybind11/pybind11.h>

void bind_blocks(pybind11::module_& module);
