// Models that decode in C++, over packed weights and numpy arrays. Checks every argument, releases the GIL and calls.
#include "bind_decode.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind_arrays.h"
#include "cpu/fork_mutex.h"
#include "decode/step.h"

namespace py = pybind11;
using namespace layercoop;
using namespace layercoop::arrays;
using namespace layercoop::decode;

namespace {

using Packed = std::shared_ptr<Matrix>;
using NormArgument = std::optional<std::pair<py::object, float>>;  // weight, epsilon

// A model, and the memory that its calls use one at a time. The model changes only under both the GIL and the lock, so
// either is enough to read it: `run` reads it under the GIL to check its arguments, and under the lock to compute.
struct DecodeModel {
  Model model;
  Workspace workspace;
  cpu::ForkMutex one_call;
};

std::string of_rows(std::int64_t row) { return "row " + std::to_string(row) + ": "; }

std::vector<float> vector(const py::object& object, const std::string& name, std::int64_t size) {
  if (object.is_none()) return {};
  const float* from = in<float>(object, name, {size});
  return {from, from + size};
}

Norm norm(const NormArgument& argument, const std::string& name, std::int64_t width) {
  if (!argument) return {};
  return {vector(argument->first, name, width), argument->second};
}

Linear linear(const Packed& matrix, const py::object& bias, const std::string& name, std::int64_t rows,
              std::int64_t columns) {
  if (matrix == nullptr) throw py::value_error(name + ": expected packed weights");
  if (matrix->rows() != rows || matrix->columns() != columns) {
    throw py::value_error(name + ": expected [" + std::to_string(rows) + ", " + std::to_string(columns) + "], got [" +
                          std::to_string(matrix->rows()) + ", " + std::to_string(matrix->columns()) + "]");
  }
  return {matrix, vector(bias, name + "_bias", rows)};
}

KvFormat parse_kv(const std::string& name) {
  if (name == "fp32") return KvFormat::fp32;
  if (name == "bf16") return KvFormat::bf16;
  if (name == "fp16") return KvFormat::fp16;
  if (name == "int8") return KvFormat::int8;
  throw py::value_error("kv_format: unknown '" + name + "'; use one of fp32, bf16, fp16, int8");
}

std::unique_ptr<DecodeModel> make_model(std::int64_t hidden, std::int64_t heads, std::int64_t kv_heads,
                                        std::int64_t width, std::int64_t inner, float scale, float score_cap,
                                        const std::string& activation) {
  auto made = std::make_unique<DecodeModel>();
  Model& model = made->model;
  model.hidden = within(hidden, 1, "hidden");
  model.heads = within(heads, 1, "heads");
  model.kv_heads = within(kv_heads, 1, "kv_heads");
  model.width = within(width, 2, "width");
  model.inner = within(inner, 1, "inner");
  if (heads % kv_heads != 0) {
    throw py::value_error("heads: " + std::to_string(heads) + " is not a multiple of " + std::to_string(kv_heads) +
                          " key heads");
  }
  if (width % 2 != 0) throw py::value_error("width: " + std::to_string(width) + " is odd");
  product(heads + 2 * kv_heads, width, "heads of queries, keys and values times width");
  product(2, model.padded_inner(), "twice inner, padded to tiles");
  model.scale = scale;
  model.score_cap = score_cap;
  if (activation != "silu" && activation != "gelu_tanh") {
    throw py::value_error("activation: unknown '" + activation + "'; use one of silu, gelu_tanh");
  }
  model.activation = activation == "silu" ? Activation::silu : Activation::gelu_tanh;
  return made;
}

void set_rotaries(DecodeModel& self, const std::vector<std::pair<py::object, py::object>>& tables) {
  Model& model = self.model;
  std::vector<Rotary> rotaries;
  std::int64_t positions = std::numeric_limits<std::int32_t>::max();
  const std::int64_t half = model.width / 2;
  for (const auto& [cos, sin] : tables) {
    const std::int64_t rows = Extent(cos, "cos").rows;
    const float* from_cos = in<float>(cos, "cos", {rows, half});
    const float* from_sin = in<float>(sin, "sin", {rows, half});
    rotaries.push_back({{from_cos, from_cos + rows * half}, {from_sin, from_sin + rows * half}});
    positions = std::min(positions, rows);
  }
  for (const Block& block : model.blocks) {
    if (block.rotary >= static_cast<int>(rotaries.size())) throw py::value_error("tables: fewer than blocks use");
  }
  const std::lock_guard<cpu::ForkMutex> lock(self.one_call);
  model.rotaries = std::move(rotaries);
  model.positions = positions;
}

void add_block(DecodeModel& self, const NormArgument& attention_norm, const Packed& qkv, const py::object& qkv_bias,
               const NormArgument& query_norm, const NormArgument& key_norm, const Packed& output,
               const py::object& output_bias, const NormArgument& after_attention, const NormArgument& mlp_norm,
               const Packed& gate_up, const py::object& gate_up_bias, const Packed& down, const py::object& down_bias,
               const NormArgument& after_mlp, int rotary, std::int64_t window) {
  Model& model = self.model;
  Block block;
  if (qkv != nullptr) {
    if (!attention_norm) throw py::value_error("attention_norm: expected a weight and an epsilon");
    block.attention_norm = norm(attention_norm, "attention_norm", model.hidden);
    block.qkv = linear(qkv, qkv_bias, "qkv", model.qkv_rows(), model.hidden);
    block.query_norm = norm(query_norm, "query_norm", model.width);
    block.key_norm = norm(key_norm, "key_norm", model.width);
    block.output = linear(output, output_bias, "output", model.hidden, model.heads * model.width);
    block.after_attention = norm(after_attention, "after_attention", model.hidden);
  }
  if (gate_up != nullptr) {
    if (!mlp_norm) throw py::value_error("mlp_norm: expected a weight and an epsilon");
    block.mlp_norm = norm(mlp_norm, "mlp_norm", model.hidden);
    block.gate_up = linear(gate_up, gate_up_bias, "gate_up", 2 * model.padded_inner(), model.hidden);
    block.down = linear(down, down_bias, "down", model.hidden, model.inner);
    block.after_mlp = norm(after_mlp, "after_mlp", model.hidden);
  }
  if (rotary >= static_cast<int>(model.rotaries.size())) {
    throw py::value_error("rotary: there is no table " + std::to_string(rotary));
  }
  block.rotary = rotary;
  block.window = within(window, 0, "window");
  const std::lock_guard<cpu::ForkMutex> lock(self.one_call);
  model.blocks.push_back(std::move(block));
}

void set_ends(DecodeModel& self, const Packed& embedding, const std::pair<py::object, float>& final_norm,
              const Packed& head, const py::object& head_bias, float embedding_scale, float logit_scale,
              float logit_cap) {
  Model& model = self.model;
  if (head == nullptr) throw py::value_error("head: expected packed weights");
  Linear found = linear(head, head_bias, "head", head->rows(), model.hidden);
  Linear table = linear(embedding, py::none(), "embedding", embedding == nullptr ? 0 : embedding->rows(), model.hidden);
  Norm last = norm(final_norm, "final_norm", model.hidden);
  const std::lock_guard<cpu::ForkMutex> lock(self.one_call);
  model.head = std::move(found);
  model.embedding = std::move(table.matrix);
  model.final_norm = std::move(last);
  model.embedding_scale = embedding_scale;
  model.logit_scale = logit_scale;
  model.logit_cap = logit_cap;
}

std::int64_t kv_page_bytes(const DecodeModel& self, const std::string& format) {
  return Pages(parse_kv(format), self.model.kv_heads, self.model.width).page_bytes();
}

// Checks all that `step` relies on. This takes little next to computing the rows.
void check(const Model& model, const Rows& rows, std::int64_t pages) {
  const auto layers = static_cast<std::int64_t>(model.blocks.size());
  const auto wrong = [](std::int64_t row, const std::string& what) { throw py::value_error(of_rows(row) + what); };
  for (std::int64_t s = 0; s < rows.sequences; ++s) {
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const std::uint8_t mask = rows.masks[s * layers + layer];
      const Block& block = model.blocks[static_cast<std::size_t>(layer)];
      if (mask > (kAttention | kMlp) || ((mask & kAttention) != 0 && block.qkv.matrix == nullptr) ||
          ((mask & kMlp) != 0 && block.gate_up.matrix == nullptr)) {
        throw py::value_error("masks: sequence " + std::to_string(s) + " keeps of block " + std::to_string(layer) +
                              " what the model does not hold");
      }
    }
  }
  for (std::int64_t row = 0; row < rows.rows; ++row) {
    const std::int32_t sequence = rows.sequence[row];
    const std::int32_t position = rows.positions[row];
    const std::int32_t parent = rows.parent[row];
    const std::int32_t fork = parent < 0 ? 0 : rows.fork[row];
    if (rows.tokens[row] < 0 || rows.tokens[row] >= model.embedding->rows())
      wrong(row, "its token is not in the vocabulary");
    if (sequence < 0 || sequence >= rows.sequences) wrong(row, "its sequence does not exist");
    if (position < 0 || position >= model.positions) wrong(row, "its position has no cosines and sines");
    if (position / kPage >= rows.table_width) wrong(row, "its position is beyond its page table");
    if (parent >= row) wrong(row, "its parent does not come before it");
    if (fork < 0 || fork > layers) wrong(row, "it forks before a block that does not exist");
    if (row > 0 && sequence == rows.sequence[row - 1]) {
      if (position != rows.positions[row - 1] + 1) wrong(row, "it does not follow the row before it");
    } else if (std::find(rows.sequence, rows.sequence + row, sequence) != rows.sequence + row) {
      wrong(row, "its sequence's rows are not next to each other");
    }
    // The last row of a sequence needs the pages of all.
    if (row + 1 < rows.rows && rows.sequence[row + 1] == sequence) continue;
    for (std::int64_t layer = fork; layer < layers; ++layer) {
      if ((rows.masks[sequence * layers + layer] & kAttention) == 0) continue;
      const std::int64_t window = model.blocks[static_cast<std::size_t>(layer)].window;
      const std::int32_t* table = rows.tables + (sequence * layers + layer) * rows.table_width;
      std::int64_t first = row;
      while (first > 0 && rows.sequence[first - 1] == sequence) --first;
      const std::int64_t seen = window > 0 ? std::max<std::int64_t>(0, rows.positions[first] - window + 1) : 0;
      for (std::int64_t at = seen / kChunk * (kChunk / kPage); at <= position / kPage; ++at) {
        if (table[at] < 0 || table[at] >= pages) wrong(row, "a page of block " + std::to_string(layer) + " is missing");
      }
    }
  }
  for (std::int64_t i = 0; i < rows.n_wanted; ++i) {
    const std::int32_t row = rows.wanted[i];
    if (row < 0 || row >= rows.rows || (rows.parent[row] >= 0 && rows.fork[row] >= layers)) {
      throw py::value_error("wanted: " + std::to_string(row) + " is not a row that is computed to the end");
    }
  }
}

void run(DecodeModel& self, const py::object& memory, const std::string& kv_format, const py::object& tokens,
         const py::object& positions, const py::object& sequence, const py::object& parent, const py::object& fork,
         const py::object& masks, const py::object& tables, const py::object& wanted, const py::object& logits,
         const py::object& best, const std::optional<std::pair<py::object, py::object>>& top) {
  const Model& model = self.model;
  if (model.head.matrix == nullptr) throw py::value_error("the model has no head yet");
  const auto layers = static_cast<std::int64_t>(model.blocks.size());
  const auto size = [](const py::object& object, const std::string& name) {
    in<std::int32_t>(object, name, {kAny});
    return static_cast<std::int64_t>(py::reinterpret_borrow<py::array>(object).size());
  };
  const std::int64_t count = within(size(tokens, "tokens"), 1, "number of tokens");
  const std::int64_t n_wanted = size(wanted, "wanted");
  const std::int64_t sequences = Extent(masks, "masks").rows;
  in<std::int32_t>(tables, "tables", {sequences, layers, kAny});
  const std::int64_t table_width = py::reinterpret_borrow<py::array>(tables).shape(2);
  const Rows rows{count,
                  sequences,
                  table_width,
                  in<std::int32_t>(tokens, "tokens", {count}),
                  in<std::int32_t>(positions, "positions", {count}),
                  in<std::int32_t>(sequence, "sequence", {count}),
                  in<std::int32_t>(parent, "parent", {count}),
                  in<std::int32_t>(fork, "fork", {count}),
                  in<std::uint8_t>(masks, "masks", {sequences, layers}),
                  in<std::int32_t>(tables, "tables", {sequences, layers, table_width}),
                  n_wanted,
                  in<std::int32_t>(wanted, "wanted", {n_wanted})};
  const Pages pages(parse_kv(kv_format), model.kv_heads, model.width);
  const KvMemory kv{pages, out<std::uint8_t>(memory, "memory", {kAny})};
  const std::int64_t n_pages =
      static_cast<std::int64_t>(py::reinterpret_borrow<py::array>(memory).size()) / pages.page_bytes();
  if (reinterpret_cast<std::uintptr_t>(kv.data) % alignof(float) != 0) {
    throw py::value_error("memory: expected to begin at a multiple of 4 bytes");
  }
  Results results;
  if (!logits.is_none()) results.logits = out<float>(logits, "logits", {n_wanted, model.vocabulary()});
  if (!best.is_none()) results.best = out<std::int64_t>(best, "best", {n_wanted});
  if (top) {
    results.top_logits = out<float>(top->first, "top", {n_wanted, kAny});
    results.top = py::reinterpret_borrow<py::array>(top->first).shape(1);
    if (results.top < 1 || results.top > model.vocabulary()) {
      throw py::value_error("top: " + std::to_string(results.top) + " is not in 1.." +
                            std::to_string(model.vocabulary()));
    }
    results.top_tokens = out<std::int64_t>(top->second, "top", {n_wanted, results.top});
  }
  const std::int64_t vocabulary = model.vocabulary();
  const py::gil_scoped_release release;
  const std::lock_guard<cpu::ForkMutex> lock(self.one_call);
  // Another thread may have had the GIL since the shapes were checked.
  if (static_cast<std::int64_t>(model.blocks.size()) != layers || model.vocabulary() != vocabulary) {
    throw std::runtime_error("the model was changed by another thread while a call began");
  }
  check(model, rows, n_pages);
  step(model, kv, self.workspace, rows, results);
}

}  // namespace

void bind_decode(py::module_& module) {
  const py::object none = py::none();
  module.attr("KV_PAGE") = kPage;
  py::class_<DecodeModel>(module, "DecodeModel")
      .def(py::init(&make_model), py::kw_only(), py::arg("hidden"), py::arg("heads"), py::arg("kv_heads"),
           py::arg("width"), py::arg("inner"), py::arg("scale"), py::arg("score_cap") = 0.0f, py::arg("activation"))
      .def_property_readonly("n_blocks", [](const DecodeModel& self) { return self.model.blocks.size(); })
      .def("set_rotaries", &set_rotaries, py::arg("tables"))
      .def("add_block", &add_block, py::kw_only(), py::arg("attention_norm") = none, py::arg("qkv") = none,
           py::arg("qkv_bias") = none, py::arg("query_norm") = none, py::arg("key_norm") = none,
           py::arg("output") = none, py::arg("output_bias") = none, py::arg("after_attention") = none,
           py::arg("mlp_norm") = none, py::arg("gate_up") = none, py::arg("gate_up_bias") = none,
           py::arg("down") = none, py::arg("down_bias") = none, py::arg("after_mlp") = none, py::arg("rotary") = -1,
           py::arg("window") = 0)
      .def("set_ends", &set_ends, py::kw_only(), py::arg("embedding"), py::arg("final_norm"), py::arg("head"),
           py::arg("head_bias") = none, py::arg("embedding_scale") = 1.0f, py::arg("logit_scale") = 1.0f,
           py::arg("logit_cap") = 0.0f)
      .def("kv_page_bytes", &kv_page_bytes, py::arg("kv_format"))
      .def("run", &run, py::arg("memory"), py::arg("kv_format"), py::kw_only(), py::arg("tokens"), py::arg("positions"),
           py::arg("sequence"), py::arg("parent"), py::arg("fork"), py::arg("masks"), py::arg("tables"),
           py::arg("wanted"), py::arg("logits") = none, py::arg("best") = none, py::arg("top") = none);
}
