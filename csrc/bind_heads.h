// Checks what attention and its slopes are told of windows and heads.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include "bind_arrays.h"

namespace layercoop::arrays {

// A joint projection qkv [windows * tokens, (heads + 2 * kv_heads) * width], or a ValueError.
struct Heads {
  std::int64_t windows;
  std::int64_t width;

  Heads(const py::object& qkv, std::int64_t tokens, std::int64_t heads, std::int64_t kv_heads, float scale) {
    const Extent extent(qkv, "qkv");
    within(tokens, 1, "tokens");
    within(heads, 1, "heads");
    within(kv_heads, 1, "kv_heads");
    if (heads % kv_heads != 0) {
      throw py::value_error("heads: " + std::to_string(heads) + " is not a multiple of " + std::to_string(kv_heads) +
                            " key heads");
    }
    const std::int64_t groups = heads + 2 * kv_heads;
    if (extent.columns < groups || extent.columns % groups != 0) {
      throw py::value_error("qkv: " + std::to_string(extent.columns) + " columns are not " + std::to_string(groups) +
                            " heads of one width");
    }
    if (extent.rows % tokens != 0) {
      throw py::value_error("qkv: " + std::to_string(extent.rows) + " rows are not windows of " +
                            std::to_string(tokens) + " tokens");
    }
    if (!(scale > 0.0f) || !std::isfinite(scale)) {
      throw py::value_error("scale: " + std::to_string(scale) + " is not a positive number");
    }
    windows = extent.rows / tokens;
    width = extent.columns / groups;
  }
};

}  // namespace layercoop::arrays
