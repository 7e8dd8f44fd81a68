// The kernels of blocks/slopes.h over numpy arrays that share memory with torch's tensors. numpy lacks bf16, so such
// numbers come as the uint16 of their bits. Checks every argument, releases the GIL and calls.
#include "bind_slopes.h"

#include <pybind11/numpy.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "bind_arrays.h"
#include "bind_heads.h"
#include "blocks/slopes.h"

namespace py = pybind11;
using namespace layercoop;
using namespace layercoop::blocks;
using namespace layercoop::arrays;

namespace {

void py_swiglu_slopes(const py::object& gate_up, const py::object& slope, const py::object& found) {
  by_type(gate_up, "gate_up", [&](auto type) {
    using T = decltype(type);
    const Extent extent(slope, "slope");
    const std::int64_t n = extent.rows;
    const std::int64_t joint = product(2, extent.columns, "columns of slope");
    const GatedSlopes<T> work{in<T>(gate_up, "gate_up", {n, joint}), in<T>(slope, "slope", {n, extent.columns}), n,
                              extent.columns, out<T>(found, "out", {n, joint})};
    run_without_gil(work);
  });
}

void py_rms_norm_slopes(const py::object& x, const py::object& weight, float eps, const py::object& slope,
                        const py::object& factors, const py::object& found, const py::object& of_weight,
                        const py::object& base) {
  by_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const Extent extent(x, "x");
    const std::int64_t n = extent.rows;
    const std::int64_t width = within(extent.columns, 1, "columns of x");
    const T* of_y = in<T>(slope, "slope", {n, width});
    float* scales = out<float>(factors, "factors", {n});
    const NormSlopes<T> rows{in<T>(x, "x", {n, width}),
                             in<T>(weight, "weight", {width}),
                             of_y,
                             in_or_null<T>(base, "base", {n, width}),
                             eps,
                             n,
                             width,
                             scales,
                             out<T>(found, "out", {n, width})};
    const NormWeightSlopes<T> columns{rows.x, of_y, scales, n, width, out<T>(of_weight, "of_weight", {width})};
    run_without_gil(rows);
    run_without_gil(columns);
  });
}

void py_causal_attention_slopes(const py::object& slope, const py::object& qkv, const py::object& mixed,
                                std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads, float scale,
                                const py::object& found) {
  by_type(qkv, "qkv", [&](auto type) {
    using T = decltype(type);
    const Heads given(qkv, tokens, heads, kv_heads, scale);
    const std::int64_t rows = given.windows * tokens;
    const std::int64_t columns = heads * given.width;
    run_without_gil(AttentionSlopes<T>{in<T>(qkv, "qkv", {kAny, kAny}), in<T>(slope, "slope", {rows, columns}),
                                       in<T>(mixed, "mixed", {rows, columns}), given.windows, tokens, heads, kv_heads,
                                       given.width, scale,
                                       out<T>(found, "out", {rows, (heads + 2 * kv_heads) * given.width})});
  });
}

void check_scaling(float scale, float cap, const std::string& name) {
  if (!(cap >= 0.0f)) throw py::value_error(name + "cap: " + std::to_string(cap) + " is below 0");
  if (scale != scale) throw py::value_error(name + "scale: it is not a number");
}

void py_divergence(const py::object& logits, const py::object& teacher, const py::object& values, float scale,
                   float cap, float teacher_scale, float teacher_cap) {
  by_type(logits, "logits", [&](auto type) {
    using T = decltype(type);
    const Extent extent(logits, "logits");
    const std::int64_t n = extent.rows;
    const std::int64_t columns = within(extent.columns, 1, "columns of logits");
    check_scaling(scale, cap, "");
    check_scaling(teacher_scale, teacher_cap, "teacher_");
    const Divergence<T> work{out<T>(logits, "logits", {n, columns}),
                             in<T>(teacher, "teacher", {n, columns}),
                             n,
                             columns,
                             scale,
                             cap,
                             teacher_scale,
                             teacher_cap,
                             out<float>(values, "values", {n})};
    run_without_gil(work);
  });
}

void py_named_divergence(const py::object& logits, const py::object& tokens, const py::object& log_probs,
                         const py::object& rest, const py::object& values, float scale, float cap) {
  by_type(logits, "logits", [&](auto type) {
    using T = decltype(type);
    const Extent extent(logits, "logits");
    const Extent given(tokens, "tokens");
    const std::int64_t n = extent.rows;
    const std::int64_t columns = within(extent.columns, 1, "columns of logits");
    const auto* at = in<std::int64_t>(tokens, "tokens", {n, kAny});
    for (std::int64_t i = 0; i < n * given.columns; ++i) {
      if (at[i] < 0 || at[i] >= columns) {
        throw py::value_error("tokens: " + std::to_string(at[i]) + " is not from 0 to " + std::to_string(columns - 1));
      }
    }
    check_scaling(scale, cap, "");
    const NamedDivergence<T> work{out<T>(logits, "logits", {n, columns}),
                                  at,
                                  in<float>(log_probs, "log_probs", {n, given.columns}),
                                  in<float>(rest, "rest", {n}),
                                  n,
                                  columns,
                                  given.columns,
                                  scale,
                                  cap,
                                  out<float>(values, "values", {n})};
    run_without_gil(work);
  });
}

void py_adamw(const py::object& gradient, const py::object& value, const py::object& first, const py::object& second,
              double rate, double beta1, double beta2, double eps, std::int64_t steps, float factor,
              const py::object& weight) {
  by_type(gradient, "gradient", [&](auto type) {
    using T = decltype(type);
    const T* given = in<T>(gradient, "gradient", {kAny});
    const std::int64_t n = py::reinterpret_borrow<py::array>(gradient).size();
    within(steps, 1, "steps");
    for (const double beta : {beta1, beta2}) {
      if (!(beta >= 0.0 && beta < 1.0)) throw py::value_error("betas: " + std::to_string(beta) + " is not in [0, 1)");
    }
    const auto power = static_cast<double>(steps);
    const AdamW<T> work{given,
                        n,
                        factor,
                        static_cast<float>(1.0 - beta1),
                        static_cast<float>(beta2),
                        static_cast<float>(1.0 - beta2),
                        static_cast<float>(eps),
                        static_cast<float>(rate / (1.0 - std::pow(beta1, power))),
                        static_cast<float>(std::sqrt(1.0 - std::pow(beta2, power))),
                        out<float>(value, "value", {n}),
                        out<float>(first, "first", {n}),
                        out<float>(second, "second", {n}),
                        weight.is_none() ? nullptr : out<T>(weight, "weight", {n})};
    run_without_gil(work);
  });
}

double py_sum_of_squares(const py::object& x) {
  double sum = 0.0;
  by_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const T* numbers = in<T>(x, "x", {kAny});
    const std::int64_t n = py::reinterpret_borrow<py::array>(x).size();
    std::vector<float> sums(static_cast<std::size_t>((n + kSquaresAtOnce - 1) / kSquaresAtOnce));
    run_without_gil(SumsOfSquares<T>{numbers, n, sums.data()});
    for (const float each : sums) sum += static_cast<double>(each);
  });
  return sum;
}

}  // namespace

void bind_slopes(py::module_& module) {
  module.def("swiglu_slopes", &py_swiglu_slopes, py::arg("gate_up"), py::arg("slope"), py::arg("out"));
  module.def("rms_norm_slopes", &py_rms_norm_slopes, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("slope"),
             py::arg("factors"), py::arg("out"), py::arg("of_weight"), py::arg("base") = py::none());
  module.def("causal_attention_slopes", &py_causal_attention_slopes, py::arg("slope"), py::arg("qkv"), py::arg("mixed"),
             py::arg("tokens"), py::arg("heads"), py::arg("kv_heads"), py::arg("scale"), py::arg("out"));
  module.def("divergence", &py_divergence, py::arg("logits"), py::arg("teacher"), py::arg("values"),
             py::arg("scale") = 1.0f, py::arg("cap") = 0.0f, py::arg("teacher_scale") = 1.0f,
             py::arg("teacher_cap") = 0.0f);
  module.def("named_divergence", &py_named_divergence, py::arg("logits"), py::arg("tokens"), py::arg("log_probs"),
             py::arg("rest"), py::arg("values"), py::arg("scale") = 1.0f, py::arg("cap") = 0.0f);
  module.def("adamw", &py_adamw, py::arg("gradient"), py::arg("value"), py::arg("first"), py::arg("second"),
             py::arg("rate"), py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("steps"), py::arg("factor"),
             py::arg("weight") = py::none());
  module.def("sum_of_squares", &py_sum_of_squares, py::arg("x"));
}
