// The surrogate's part of the Python face; see module.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace layercoop {

void bind_surrogate(pybind11::module_& module);

}  // namespace layercoop
