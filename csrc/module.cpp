// The Python module of the C++ core: checks every argument, releases the GIL and calls. Documented in _C.pyi.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bind_arrays.h"
#include "bind_blocks.h"
#include "bind_decode.h"
#include "bind_products.h"
#include "bind_slopes.h"
#include "bind_surrogate.h"
#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "masks.h"
#include "plan.h"

namespace py = pybind11;
using namespace layercoop;

namespace {

py::array_t<bool> bool_matrix(const py::object& object) {
  auto masks = arrays::array<bool>(object, "masks", {arrays::kAny, arrays::kAny});
  const py::ssize_t n = masks.shape(1);
  if (n < 1 || n > kMaxPlayers) {
    throw py::value_error("masks: " + std::to_string(n) + " players are not in 1.." + std::to_string(kMaxPlayers));
  }
  return masks;
}

int checked_players(std::int64_t n) {
  if (n < 1 || n > kMaxPlayers) {
    throw py::value_error("n_players: " + std::to_string(n) + " is not in 1.." + std::to_string(kMaxPlayers));
  }
  return static_cast<int>(n);
}

// Rows of packed masks that fit `n_players` and have no bit set past the last of them.
struct PackedArg {
  py::array_t<std::uint64_t> array;
  const std::uint64_t* data;
  std::int64_t count;
  int n_players;

  PackedArg(const py::object& object, std::int64_t n)
      : array(arrays::array<std::uint64_t>(object, "packed", {arrays::kAny, arrays::kAny})),
        n_players(checked_players(n)) {
    if (array.shape(1) != words(n_players)) {
      throw py::value_error("packed: " + std::to_string(array.shape(1)) + " words a row; " + std::to_string(n_players) +
                            " players need " + std::to_string(words(n_players)));
    }
    data = array.data();
    count = array.shape(0);
    const py::gil_scoped_release release;
    check_packed(data, count, n_players);
  }
};

py::array_t<std::uint64_t> py_pack_masks(const py::object& object) {
  const py::array_t<bool> masks = bool_matrix(object);
  const std::int64_t count = masks.shape(0);
  const int n = static_cast<int>(masks.shape(1));
  py::array_t<std::uint64_t> packed({count, std::int64_t{words(n)}});
  const auto* in = reinterpret_cast<const std::uint8_t*>(masks.data());
  std::uint64_t* out = packed.mutable_data();
  const py::gil_scoped_release release;
  pack_masks(in, count, n, out);
  return packed;
}

py::array_t<bool> py_unpack_masks(const py::object& object, std::int64_t n_players) {
  const PackedArg packed(object, n_players);
  py::array_t<bool> masks({packed.count, n_players});
  auto* out = reinterpret_cast<std::uint8_t*>(masks.mutable_data());
  const py::gil_scoped_release release;
  unpack_masks(packed.data, packed.count, packed.n_players, out);
  return masks;
}

py::array_t<std::int32_t> py_popcounts(const py::object& object) {
  const auto packed = arrays::array<std::uint64_t>(object, "packed", {arrays::kAny, arrays::kAny});
  const std::int64_t n_words = packed.shape(1);
  if (n_words < 1 || n_words > words(kMaxPlayers)) {
    throw py::value_error("packed: " + std::to_string(n_words) + " words a row are not in 1.." +
                          std::to_string(words(kMaxPlayers)));
  }
  py::array_t<std::int32_t> counts(packed.shape(0));
  const std::uint64_t* in = packed.data();
  std::int32_t* out = counts.mutable_data();
  const std::int64_t count = packed.shape(0);
  const py::gil_scoped_release release;
  popcounts(in, count, static_cast<int>(n_words), out);
  return counts;
}

py::tuple py_trie_counts(const py::object& object, std::int64_t n_players) {
  const PackedArg packed(object, n_players);
  TrieCounts counts;
  {
    const py::gil_scoped_release release;
    counts = count_trie(packed.data, packed.count, packed.n_players);
  }
  return py::make_tuple(counts.naive, counts.skip, counts.plan, counts.unique);
}

std::unique_ptr<Plan> make_plan(const py::object& object, std::int64_t n_players, std::int64_t max_states) {
  const PackedArg packed(object, n_players);
  if (max_states > 0) arrays::within(max_states, 1, "max_states");  // Plan refuses smaller ones with its own message
  const py::gil_scoped_release release;
  return std::make_unique<Plan>(packed.data, packed.count, packed.n_players, max_states);
}

// A read-only array over memory that `owner` keeps alive.
template <typename T>
py::array_t<T> view(const std::vector<T>& values, const py::object& owner) {
  py::array_t<T> array(static_cast<py::ssize_t>(values.size()), values.data(), owner);
  array.attr("setflags")(py::arg("write") = false);
  return array;
}

void bind_plan(py::module_& module) {
  py::class_<Plan> plan(module, "Plan");
  plan.def(py::init(&make_plan), py::arg("packed"), py::arg("n_players"), py::arg("max_states"));

  plan.def_readonly("n_masks", &Plan::n_masks);
  plan.def_readonly("n_players", &Plan::n_players);
  plan.def_readonly("max_states", &Plan::max_states);
  plan.def_readonly("states_without_recompute", &Plan::states_without_recompute);
  plan.def_property_readonly("n_unique", [](const Plan& p) { return p.counts.unique; });
  plan.def_property_readonly("naive", [](const Plan& p) { return p.counts.naive; });
  plan.def_property_readonly("skip", [](const Plan& p) { return p.counts.skip; });
  plan.def_property_readonly("plan", [](const Plan& p) { return p.counts.plan; });
  plan.def_property_readonly("scheduled", [](const Plan& p) { return p.schedule.evaluations; });
  plan.def_property_readonly("peak_states", [](const Plan& p) { return p.schedule.peak_states; });

  const auto def_array = [&plan](const char* name, auto member) {
    plan.def_property_readonly(
        name, [member](const py::object& self) { return view(self.cast<const Plan&>().*member, self); });
  };
  const auto def_schedule_array = [&plan](const char* name, auto member) {
    plan.def_property_readonly(
        name, [member](const py::object& self) { return view(self.cast<const Plan&>().schedule.*member, self); });
  };
  def_array("unique_rows", &Plan::unique_rows);
  def_array("inverse", &Plan::inverse);
  def_schedule_array("step_player", &Schedule::step_player);
  def_schedule_array("op_offsets", &Schedule::op_offsets);
  def_schedule_array("op_src", &Schedule::op_src);
  def_schedule_array("op_dst", &Schedule::op_dst);
  def_schedule_array("emit_offsets", &Schedule::emit_offsets);
  def_schedule_array("emit_mask", &Schedule::emit_mask);
  def_schedule_array("emit_slot", &Schedule::emit_slot);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  cpu::set_isa_from_environment();
  cpu::set_num_threads_from_environment();

  module.attr("MAX_PLAYERS") = kMaxPlayers;

  module.def("isa", [] { return cpu::isa_name(cpu::isa()); });
  module.def("isa_available", [] {
    std::vector<std::string> names;
    for (const cpu::Isa level : cpu::available_isas()) names.push_back(cpu::isa_name(level));
    return names;
  });
  module.def("set_isa", &cpu::set_isa, py::arg("name"));
  module.def("dots", [] {
    std::vector<std::string> names;
    if (cpu::uses_int8_dots()) names.push_back("int8");
    if (cpu::uses_bf16_dots()) names.push_back("bf16");
    if (cpu::uses_int8_matrices()) names.push_back("int8 matrices");
    if (cpu::uses_bf16_matrices()) names.push_back("bf16 matrices");
    return names;
  });
  module.def("allow_dots", &cpu::allow_dots, py::arg("allowed"));
  module.def("allow_matrices", &cpu::allow_matrices, py::arg("allowed"));
  module.def("num_threads", &cpu::num_threads);
  module.def("set_num_threads", &cpu::set_num_threads, py::arg("count"));
  module.def(
      "borrow_threads", [](std::uintptr_t lender) { cpu::borrow_threads(reinterpret_cast<cpu::Lender>(lender)); },
      py::arg("lender"));

  module.def("pack_masks", &py_pack_masks, py::arg("masks"));
  module.def("unpack_masks", &py_unpack_masks, py::arg("packed"), py::arg("n_players"));
  module.def("popcounts", &py_popcounts, py::arg("packed"));
  module.def("trie_counts", &py_trie_counts, py::arg("packed"), py::arg("n_players"));
  bind_plan(module);
  bind_blocks(module);
  bind_slopes(module);
  bind_products(module);
  bind_decode(module);
  bind_surrogate(module);
}
