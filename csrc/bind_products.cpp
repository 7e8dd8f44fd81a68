// Packed weights and their products over numpy arrays. Checks every argument, releases the GIL and calls.
#include "bind_products.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "bind_arrays.h"
#include "cpu/pool.h"
#include "decode/matrix.h"
#include "decode/products.h"
#include "decode/quantise.h"
#include "decode/unpacked.h"

namespace py = pybind11;
using namespace layercoop;
using namespace layercoop::arrays;
using namespace layercoop::decode;

namespace {

Origin parse_origin(const std::string& name) {
  if (name == "fp32") return Origin::fp32;
  if (name == "bf16") return Origin::bf16;
  if (name == "fp16") return Origin::fp16;
  throw py::value_error("origin: unknown '" + name + "'; use one of fp32, bf16, fp16");
}

std::int64_t groups_of(std::int64_t columns) { return (columns + kGroup - 1) / kGroup; }

// How many rows an array has that fills a matrix, or is filled from one, from row `first` on.
std::int64_t rows_to_fill(const Matrix& matrix, std::int64_t first, const py::object& array, const std::string& name) {
  const std::int64_t count = Extent(array, name).rows;
  within(first, 0, "first");
  if (first > matrix.rows() || count > matrix.rows() - first) {
    throw py::value_error(name + ": rows " + std::to_string(first) + " to " + std::to_string(first + count) +
                          " are not within " + std::to_string(matrix.rows()));
  }
  return count;
}

void require_format(const Matrix& matrix, Format format) {
  if (matrix.format() == format) return;
  throw py::value_error("format: expected " + format_name(format) + ", got " + format_name(matrix.format()));
}

void py_fill(Matrix& matrix, std::int64_t first, const py::object& weights, const std::string& origin) {
  const std::int64_t count = rows_to_fill(matrix, first, weights, "weights");
  const float* from = in<float>(weights, "weights", {count, matrix.columns()});
  const Origin parsed = parse_origin(origin);
  const py::gil_scoped_release release;
  matrix.fill(first, count, from, parsed);
}

void py_fill_int8(Matrix& matrix, std::int64_t first, const py::object& q, const py::object& scales) {
  require_format(matrix, Format::int8);
  const std::int64_t count = rows_to_fill(matrix, first, q, "q");
  const auto* from = in<std::int8_t>(q, "q", {count, matrix.columns()});
  const auto* with = in<std::uint16_t>(scales, "scales", {count, matrix.groups()});
  if (std::find(from, from + count * matrix.columns(), std::int8_t{-128}) != from + count * matrix.columns()) {
    throw py::value_error("q: -128 is not in -127..127");
  }
  const py::gil_scoped_release release;
  matrix.fill_int8(first, count, from, with);
}

void py_fill_int4(Matrix& matrix, std::int64_t first, const py::object& q, const py::object& scales,
                  const py::object& mins) {
  require_format(matrix, Format::int4);
  const std::int64_t count = rows_to_fill(matrix, first, q, "q");
  const auto* from = in<std::uint8_t>(q, "q", {count, matrix.columns()});
  const auto* with = in<std::uint16_t>(scales, "scales", {count, matrix.groups()});
  const auto* and_with = in<std::uint16_t>(mins, "mins", {count, matrix.groups()});
  for (std::int64_t i = 0; i < count * matrix.columns(); ++i) {
    if (from[i] > 15) throw py::value_error("q: " + std::to_string(from[i]) + " is not in 0..15");
  }
  const py::gil_scoped_release release;
  matrix.fill_int4(first, count, from, with, and_with);
}

void py_unpack(const Matrix& matrix, std::int64_t first, const py::object& rows) {
  const std::int64_t count = rows_to_fill(matrix, first, rows, "out");
  float* to = out<float>(rows, "out", {count, matrix.columns()});
  const py::gil_scoped_release release;
  matrix.unpack(first, count, to, matrix.columns());
}

void py_multiply(const Matrix& matrix, const py::object& x, const py::object& product) {
  const std::int64_t rows = Extent(x, "x").rows;
  const float* from = in<float>(x, "x", {rows, matrix.columns()});
  float* to = out<float>(product, "out", {rows, matrix.rows()});
  const py::gil_scoped_release release;
  Inputs inputs(rows, matrix.columns());
  for (std::int64_t r = 0; r < rows; ++r) {
    std::copy(from + r * matrix.columns(), from + (r + 1) * matrix.columns(), inputs.row(r));
  }
  inputs.prepare(rows, matrix.columns(), matrix.format());
  // Ranges of some tens of microseconds, and of several tiles: products take some at once.
  constexpr std::int64_t bytes_per_range = 1 << 19;
  const std::int64_t grain =
      std::max<std::int64_t>(4, bytes_per_range / std::max<std::int64_t>(1, matrix.tile_bytes()));
  cpu::parallel_for(matrix.tiles(), grain, [&](std::int64_t begin, std::int64_t end) {
    multiply(matrix, inputs, to, matrix.rows(), begin * kTile, std::min(matrix.rows(), end * kTile));
  });
}

void py_linear_bf16(const py::object& x, const py::object& weight, const py::object& bias, const py::object& product) {
  const Extent extent(x, "x");
  const std::int64_t outputs = Extent(weight, "weight").rows;
  if (extent.columns % 2 != 0) {
    throw py::value_error("x: " + std::to_string(extent.columns) + " columns are an odd number");
  }
  run_without_gil(UnpackedProduct{in<Bf16>(x, "x", {extent.rows, extent.columns}),
                                  in<Bf16>(weight, "weight", {outputs, extent.columns}),
                                  in_or_null<Bf16>(bias, "bias", {outputs}), extent.rows, extent.columns, outputs,
                                  out<Bf16>(product, "out", {extent.rows, outputs})});
}

// Calls quantise(row, count) for ranges of rows, on several threads.
template <typename Function>
void by_rows(std::int64_t rows, std::int64_t columns, const Function& quantise) {
  const py::gil_scoped_release release;
  const std::int64_t grain = std::max<std::int64_t>(1, (1 << 15) / std::max<std::int64_t>(1, columns));
  cpu::parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) { quantise(begin, end - begin); });
}

void py_quantise_int8(const py::object& weights, const std::string& origin, const py::object& q,
                      const py::object& scales) {
  const Extent extent(weights, "weights");
  const std::int64_t columns = extent.columns;
  const std::int64_t groups = groups_of(columns);
  const float* from = in<float>(weights, "weights", {extent.rows, columns});
  auto* to = out<std::int8_t>(q, "q", {extent.rows, columns});
  auto* with = out<std::uint16_t>(scales, "scales", {extent.rows, groups});
  const Origin parsed = parse_origin(origin);
  by_rows(extent.rows, columns, [&](std::int64_t row, std::int64_t count) {
    quantise_int8(from + row * columns, count, columns, parsed, to + row * columns, with + row * groups);
  });
}

void py_quantise_int4(const py::object& weights, const std::string& origin, const py::object& q,
                      const py::object& scales, const py::object& mins) {
  const Extent extent(weights, "weights");
  const std::int64_t columns = extent.columns;
  const std::int64_t groups = groups_of(columns);
  const float* from = in<float>(weights, "weights", {extent.rows, columns});
  auto* to = out<std::uint8_t>(q, "q", {extent.rows, columns});
  auto* with = out<std::uint16_t>(scales, "scales", {extent.rows, groups});
  auto* and_with = out<std::uint16_t>(mins, "mins", {extent.rows, groups});
  const Origin parsed = parse_origin(origin);
  by_rows(extent.rows, columns, [&](std::int64_t row, std::int64_t count) {
    quantise_int4(from + row * columns, count, columns, parsed, to + row * columns, with + row * groups,
                  and_with + row * groups);
  });
}

}  // namespace

void bind_products(py::module_& module) {
  py::class_<Matrix, std::shared_ptr<Matrix>>(module, "PackedMatrix")
      .def(py::init([](const std::string& format, std::int64_t rows, std::int64_t columns) {
             return std::make_shared<Matrix>(parse_format(format), within(rows, 0, "rows"),
                                             within(columns, 0, "columns"));
           }),
           py::arg("format"), py::arg("rows"), py::arg("columns"))
      .def_property_readonly("format", [](const Matrix& matrix) { return format_name(matrix.format()); })
      .def_property_readonly("rows", &Matrix::rows)
      .def_property_readonly("columns", &Matrix::columns)
      .def_property_readonly("nbytes", &Matrix::bytes)
      .def("fill", &py_fill, py::arg("first"), py::arg("weights"), py::arg("origin"))
      .def("fill_int8", &py_fill_int8, py::arg("first"), py::arg("q"), py::arg("scales"))
      .def("fill_int4", &py_fill_int4, py::arg("first"), py::arg("q"), py::arg("scales"), py::arg("mins"))
      .def("unpack", &py_unpack, py::arg("first"), py::arg("out"))
      .def("multiply", &py_multiply, py::arg("x"), py::arg("out"));
  module.def("linear_bf16", &py_linear_bf16, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("out"));
  module.def("quantise_int8", &py_quantise_int8, py::arg("weights"), py::arg("origin"), py::arg("q"),
             py::arg("scales"));
  module.def("quantise_int4", &py_quantise_int4, py::arg("weights"), py::arg("origin"), py::arg("q"), py::arg("scales"),
             py::arg("mins"));
}
