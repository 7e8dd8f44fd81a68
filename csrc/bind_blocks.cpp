// The kernels of blocks/blocks.h over numpy arrays that share memory with torch's tensors. numpy lacks bf16, so such
// numbers come as the uint16 of their bits. Checks every argument, releases the GIL and calls.
#include "bind_blocks.h"

#include <pybind11/numpy.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>

#include "bind_arrays.h"
#include "bind_heads.h"
#include "blocks/blocks.h"

namespace py = pybind11;
using namespace layercoop;
using namespace layercoop::blocks;
using namespace layercoop::arrays;

namespace {

template <typename T>
Norm<T> norm_of(const py::object& weight, const std::string& name, float eps, bool gemma, std::int64_t width) {
  return {in_or_null<T>(weight, name, {width}), eps, gemma};
}

void py_rms_norm(const py::object& x, const py::object& weight, float eps, const py::object& normed,
                 const py::object& delta, const py::object& sum, const py::object& after, float after_eps, float factor,
                 bool gemma) {
  by_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const Extent extent(x, "x");
    const std::int64_t n = extent.rows;
    const std::int64_t width = within(extent.columns, 1, "columns of x");
    if (delta.is_none() != sum.is_none()) throw py::value_error("delta and sum: expected both or none");
    if (weight.is_none() != normed.is_none()) throw py::value_error("weight and out: expected both or none");
    run_without_gil(RmsNorm<T>{in<T>(x, "x", {n, width}), in_or_null<T>(delta, "delta", {n, width}),
                               norm_of<T>(after, "after", after_eps, gemma, width), factor,
                               norm_of<T>(weight, "weight", eps, gemma, width), n, width,
                               sum.is_none() ? nullptr : out<T>(sum, "sum", {n, width}),
                               normed.is_none() ? nullptr : out<T>(normed, "out", {n, width})});
  });
}

void py_rotary(const py::object& x, const py::object& cos, const py::object& sin, std::int64_t query_heads,
               std::int64_t key_heads, const py::object& query_norm, const py::object& key_norm, float eps, bool gemma,
               bool joint_norms) {
  by_type(x, "x", [&](auto type) {
    using T = decltype(type);
    const Extent extent(x, "x");
    const Extent angles(cos, "cos");
    const std::int64_t tokens = within(angles.rows, 1, "rows of cos");
    const std::int64_t width = within(angles.columns, 2, "columns of cos");
    if (width % 2 != 0) throw py::value_error("cos: " + std::to_string(width) + " columns are an odd number");
    within(query_heads, 0, "query_heads");
    within(key_heads, 0, "key_heads");
    const std::int64_t room = extent.columns / width;
    if (query_heads > room || key_heads > room - query_heads) {
      throw py::value_error("x: " + std::to_string(extent.columns) + " columns do not hold " +
                            std::to_string(query_heads) + " + " + std::to_string(key_heads) + " heads of " +
                            std::to_string(width));
    }
    const auto rotate = [&](auto angle) {
      using Angle = decltype(angle);
      run_without_gil(Rotary<T, Angle>{
          out<T>(x, "x", {kAny, kAny}), in<Angle>(cos, "cos", {tokens, width}), in<Angle>(sin, "sin", {tokens, width}),
          norm_of<T>(query_norm, "query_norm", eps, gemma, joint_norms ? query_heads * width : width),
          norm_of<T>(key_norm, "key_norm", eps, gemma, joint_norms ? key_heads * width : width), joint_norms,
          extent.rows, extent.columns, tokens, width, query_heads, key_heads});
    };
    // Angles are of x's type, or float beside bf16.
    py::isinstance<py::array_t<float>>(cos) ? rotate(float{}) : rotate(type);
  });
}

void gated(const py::object& gate_up, const py::object& product, Activation activation) {
  by_type(gate_up, "gate_up", [&](auto type) {
    using T = decltype(type);
    const Extent extent(gate_up, "gate_up");
    if (extent.columns % 2 != 0) {
      throw py::value_error("gate_up: " + std::to_string(extent.columns) + " columns are an odd number");
    }
    const std::int64_t width = extent.columns / 2;
    run_without_gil(Gated<T>{in<T>(gate_up, "gate_up", {extent.rows, 2 * width}), activation, extent.rows, width,
                             out<T>(product, "out", {extent.rows, width})});
  });
}

void py_swiglu(const py::object& gate_up, const py::object& product) { gated(gate_up, product, Activation::silu); }
void py_geglu(const py::object& gate_up, const py::object& product) { gated(gate_up, product, Activation::gelu); }

// The checked positions of the rows of windows that are trees; nothing for plain windows.
struct Tree {
  const std::int64_t* positions = nullptr;
  std::int64_t pattern = 0;
  std::int64_t depth;

  Tree(const py::object& object, std::int64_t tokens) : depth(tokens) {
    if (object.is_none()) return;
    positions = in<std::int64_t>(object, "positions", {kAny});
    pattern = py::reinterpret_borrow<py::array>(object).size();
    if (pattern == 0 || pattern % tokens != 0) {
      throw py::value_error("positions: " + std::to_string(pattern) + " are not those of windows of " +
                            std::to_string(tokens) + " tokens");
    }
    depth = 0;
    for (std::int64_t row = 0; row < pattern; ++row) {
      const std::int64_t most = row % tokens == 0 ? 0 : positions[row - 1] + 1;
      if (positions[row] < 0 || positions[row] > most) {
        throw py::value_error("positions: row " + std::to_string(row) + " at " + std::to_string(positions[row]) +
                              " is not from 0 to " + std::to_string(most));
      }
      depth = std::max(depth, positions[row] + 1);
    }
  }
};

void py_causal_attention(const py::object& qkv, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads,
                         float scale, const py::object& asked, const py::object& mixed, const py::object& positions,
                         std::int64_t sliding_window, float cap) {
  by_type(qkv, "qkv", [&](auto type) {
    using T = decltype(type);
    const Heads given(qkv, tokens, heads, kv_heads, scale);
    within(sliding_window, 0, "sliding_window");
    if (!(cap >= 0.0f) || !std::isfinite(cap)) {
      throw py::value_error("cap: " + std::to_string(cap) + " is neither 0 nor a positive number");
    }
    const auto* at = in<std::int64_t>(asked, "asked", {kAny});
    const std::int64_t n_asked = py::reinterpret_borrow<py::array>(asked).size();
    for (std::int64_t i = 0; i < n_asked; ++i) {
      if (at[i] < (i == 0 ? 0 : at[i - 1] + 1) || at[i] >= tokens) {
        throw py::value_error("asked: expected ascending tokens of a window of " + std::to_string(tokens) + ", got " +
                              std::to_string(at[i]) + " at index " + std::to_string(i));
      }
    }
    const Tree tree(positions, tokens);
    run_without_gil(Attention<T>{in<T>(qkv, "qkv", {kAny, kAny}), given.windows, tokens, heads, kv_heads, given.width,
                                 scale, cap, sliding_window, at, n_asked, tree.positions, tree.pattern, tree.depth,
                                 out<T>(mixed, "out", {given.windows * n_asked, heads * given.width})});
  });
}

void py_running_loss(const py::object& logits, const py::object& targets, std::int64_t first_token,
                     const py::object& running, float scale, float cap, const py::object& teacher,
                     const py::object& teacher_running) {
  by_type(logits, "logits", [&](auto type) {
    using T = decltype(type);
    const Extent extent(logits, "logits");
    const std::int64_t n = extent.rows;
    within(first_token, 0, "first_token");
    if (teacher.is_none() != teacher_running.is_none()) {
      throw py::value_error("teacher and teacher_running: expected both or none");
    }
    const auto state = [n](const py::object& object, const std::string& name) {
      return reinterpret_cast<Running*>(out<float>(object, name, {n, 3}));
    };
    run_without_gil(Loss<T>{in<T>(logits, "logits", {n, kAny}), in_or_null<T>(teacher, "teacher", {n, extent.columns}),
                            in<std::int64_t>(targets, "targets", {n}), n, extent.columns, first_token, scale, cap,
                            state(running, "running"),
                            teacher.is_none() ? nullptr : state(teacher_running, "teacher_running")});
  });
}

}  // namespace

void bind_blocks(py::module_& module) {
  const py::object none = py::none();
  module.def("rms_norm", &py_rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"),
             py::arg("delta") = none, py::arg("sum") = none, py::arg("after") = none, py::arg("after_eps") = 0.0f,
             py::arg("factor") = 1.0f, py::arg("gemma") = false);
  module.def("rotary", &py_rotary, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("query_heads"),
             py::arg("key_heads"), py::arg("query_norm") = none, py::arg("key_norm") = none, py::arg("eps") = 0.0f,
             py::arg("gemma") = false, py::arg("joint_norms") = false);
  module.def("swiglu", &py_swiglu, py::arg("gate_up"), py::arg("out"));
  module.def("geglu", &py_geglu, py::arg("gate_up"), py::arg("out"));
  module.def("causal_attention", &py_causal_attention, py::arg("qkv"), py::arg("tokens"), py::arg("heads"),
             py::arg("kv_heads"), py::arg("scale"), py::arg("asked"), py::arg("out"), py::arg("positions") = none,
             py::arg("sliding_window") = 0, py::arg("cap") = 0.0f);
  module.def("running_loss", &py_running_loss, py::arg("logits"), py::arg("targets"), py::arg("first_token"),
             py::arg("running"), py::arg("scale") = 1.0f, py::arg("cap") = 0.0f, py::arg("teacher") = none,
             py::arg("teacher_running") = none);
}
