// Adds packed weights and their products (decode/) to the module; documented in _C.pyi.
#pragma once

#include <pybind11/pybind11.h>

void bind_products(pybind11::module_& module);
