// Adds models that decode in C++ (decode/step.h) to the module; documented in _C.pyi.
#pragma once

#include <pybind11/pybind11.h>

void bind_decode(pybind11::module_& module);
