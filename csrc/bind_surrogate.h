// Adds the surrogate's functions (surrogate/) to the module; documented in _C.pyi.
#pragma once

#include <pybind11/pybind11.h>

namespace layercoop {

void bind_surrogate(pybind11::module_& module);

}  // namespace layercoop
