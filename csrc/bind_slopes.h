// Adds the kernels of blocks/slopes.h to the module; documented in _C.pyi.
#pragma once

#include <pybind11/pybind11.h>

void bind_slopes(pybind11::module_& module);
