// Checks the arguments of bindings: numpy arrays must have exactly the wanted dtype, shape and layout, or a Python
// error says what is wrong. numpy lacks bf16, so such numbers come as the uint16 of their bits.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "half.h"

namespace layercoop::arrays {

namespace py = pybind11;

constexpr std::int64_t kAny = -1;

inline std::string shown(const std::initializer_list<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t extent : shape) {
    text += (text.empty() ? "" : ", ") + (extent == kAny ? std::string("any") : std::to_string(extent));
  }
  return "[" + text + "]";
}

inline std::string type_name(const py::object& object) {
  return py::str(py::type::of(object).attr("__name__")).cast<std::string>();
}

// A C-contiguous array of exactly the element type T and the given shape, or a TypeError or ValueError that says what
// is wrong and what would be right.
template <typename T>
py::array_t<T> array(const py::object& object, const std::string& name,
                     const std::initializer_list<std::int64_t>& shape) {
  // Made only where it is needed: numpy writes a dtype's name in Python, and a decoding step checks a dozen arrays.
  const auto wanted = [&] {
    return name + ": expected a C-contiguous numpy array " +
           py::str(py::object(py::dtype::of<T>())).cast<std::string>() + shown(shape) + ", got ";
  };
  if (!py::isinstance<py::array>(object)) throw py::type_error(wanted() + type_name(object));
  if (!py::isinstance<py::array_t<T>>(object)) {
    throw py::type_error(wanted() + "dtype " + py::str(object.attr("dtype")).cast<std::string>());
  }
  auto found = py::reinterpret_borrow<py::array_t<T>>(object);
  bool fits = found.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t axis = 0;
  for (const std::int64_t extent : shape) {
    fits = fits && (extent == kAny || found.shape(axis) == extent);
    ++axis;
  }
  if (!fits) throw py::value_error(wanted() + "shape " + py::str(object.attr("shape")).cast<std::string>());
  if ((found.flags() & py::array::c_style) == 0) throw py::value_error(wanted() + "another memory layout");
  return found;
}

template <typename T>
using Stored = std::conditional_t<std::is_same_v<T, Bf16>, std::uint16_t, T>;

template <typename T>
const T* in(const py::object& object, const std::string& name, const std::initializer_list<std::int64_t>& shape) {
  return reinterpret_cast<const T*>(array<Stored<T>>(object, name, shape).data());
}

template <typename T>
const T* in_or_null(const py::object& object, const std::string& name,
                    const std::initializer_list<std::int64_t>& shape) {
  return object.is_none() ? nullptr : in<T>(object, name, shape);
}

template <typename T>
T* out(const py::object& object, const std::string& name, const std::initializer_list<std::int64_t>& shape) {
  auto found = array<Stored<T>>(object, name, shape);
  if (!found.writeable()) throw py::value_error(name + ": expected an array that can be written");
  return reinterpret_cast<T*>(found.mutable_data());
}

// Calls run(work), of the work's own namespace, while other Python threads run.
template <typename Work>
void run_without_gil(const Work& work) {
  const py::gil_scoped_release release;
  run(work);
}

// Calls `function` with a float or a Bf16, as the element type of the named argument is.
template <typename Function>
void by_type(const py::object& object, const std::string& name, const Function& function) {
  if (py::isinstance<py::array_t<float>>(object)) return function(float{});
  if (py::isinstance<py::array_t<std::uint16_t>>(object)) return function(Bf16{});
  const std::string dtype = py::isinstance<py::array>(object)
                                ? py::str(py::object(object.attr("dtype"))).cast<std::string>()
                                : type_name(object);
  throw py::type_error(name + ": expected a numpy array of float32, or uint16 (the bits of bf16), got " + dtype);
}

// The largest size, count or index: the product of two of them fits 64 bits.
constexpr std::int64_t kMost = std::int64_t{1} << 31;

// A size from `low` to kMost, or a ValueError.
inline std::int64_t within(std::int64_t value, std::int64_t low, const std::string& name) {
  if (value < low) throw py::value_error(name + ": " + std::to_string(value) + " is below " + std::to_string(low));
  if (value > kMost) throw py::value_error(name + ": " + std::to_string(value) + " is above " + std::to_string(kMost));
  return value;
}

// The product of two sizes, which must be a size too, or a ValueError.
inline std::int64_t product(std::int64_t a, std::int64_t b, const std::string& name) {
  std::int64_t found;
  if (__builtin_mul_overflow(a, b, &found)) {
    throw py::value_error(name + ": " + std::to_string(a) + " x " + std::to_string(b) + " is above " +
                          std::to_string(kMost));
  }
  return within(found, 0, name);
}

// Rows and columns of the argument that the others are checked against. An array without elements may claim any extent,
// so these are checked as numbers from the caller are.
struct Extent {
  std::int64_t rows;
  std::int64_t columns;

  Extent(const py::object& object, const std::string& name) {
    if (!py::isinstance<py::array>(object)) {
      throw py::type_error(name + ": expected a numpy array, got " + type_name(object));
    }
    const auto found = py::reinterpret_borrow<py::array>(object);
    if (found.ndim() != 2) {
      throw py::value_error(name + ": expected 2 dimensions, got " + std::to_string(found.ndim()));
    }
    rows = within(found.shape(0), 0, name + ": rows");
    columns = within(found.shape(1), 0, name + ": columns");
  }
};

}  // namespace layercoop::arrays
