#include "bind_surrogate.h"

#include <pybind11/numpy.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bind_arrays.h"
#include "cpu/fork_mutex.h"
#include "masks.h"
#include "surrogate/enumeration.h"
#include "surrogate/flips.h"
#include "surrogate/networks.h"

namespace py = pybind11;

namespace layercoop {
namespace {

using namespace arrays;
using namespace surrogate;

template <typename T>
void require_finite(const py::array_t<T>& values, const std::string& name) {
  for (py::ssize_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values.data()[i])) throw py::value_error(name + ": NaN and infinite values are not allowed");
  }
}

Activation activation_of(const std::string& name) {
  if (name == "celu") return Activation::celu;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "tanh") return Activation::tanh;
  throw py::value_error("activation: unknown name '" + name + "'; use one of celu, relu, gelu, tanh");
}

bool is_sigmoid(const std::string& name) {
  if (name == "sigmoid") return true;
  if (name == "linear") return false;
  throw py::value_error("output: unknown name '" + name + "'; use sigmoid or linear");
}

// The attributes of a layercoop_fast.kernels.networks.Networks, checked again and held while C++ reads them.
struct NetworksArg {
  py::array_t<float> hidden_weight, hidden_bias, output_weight, output_bias;
  Networks networks;

  explicit NetworksArg(const py::object& object) {
    hidden_weight = array<float>(object.attr("hidden_weight"), "hidden_weight", {kAny, kAny, kAny});
    const py::ssize_t e = hidden_weight.shape(0), h = hidden_weight.shape(1), n = hidden_weight.shape(2);
    hidden_bias = array<float>(object.attr("hidden_bias"), "hidden_bias", {e, h});
    output_weight = array<float>(object.attr("output_weight"), "output_weight", {e, h});
    output_bias = array<float>(object.attr("output_bias"), "output_bias", {e});
    if (e < 1 || h < 1 || n < 1 || e > (1 << 16) || h > (1 << 16) || n > kMaxPlayers) {
      throw py::value_error("hidden_weight: [E, H, n] must lie in 1..65536, 1..65536, 1.." +
                            std::to_string(kMaxPlayers));
    }
    require_finite(hidden_weight, "hidden_weight");
    require_finite(hidden_bias, "hidden_bias");
    require_finite(output_weight, "output_weight");
    require_finite(output_bias, "output_bias");
    networks = {hidden_weight.data(),
                hidden_bias.data(),
                output_weight.data(),
                output_bias.data(),
                static_cast<int>(e),
                static_cast<int>(h),
                static_cast<int>(n),
                activation_of(object.attr("activation").cast<std::string>()),
                is_sigmoid(object.attr("output").cast<std::string>())};
    if (!(largest_value(networks) <= kLargestValue)) {
      throw py::value_error("networks: the weights are so large that a value may leave the range of float32");
    }
  }
};

py::array_t<std::uint64_t> packed_masks(const py::object& object, int n_players) {
  const auto packed = array<std::uint64_t>(object, "packed", {kAny, words(n_players)});
  const py::gil_scoped_release release;
  check_packed(packed.data(), packed.shape(0), n_players);
  return packed;
}

py::array_t<float> py_predict_logits(const py::object& object, const py::object& masks) {
  const NetworksArg arg(object);
  const auto packed = packed_masks(masks, arg.networks.n_players);
  py::array_t<float> logits({packed.shape(0), py::ssize_t{arg.networks.n_networks}});
  float* const out = logits.mutable_data();
  const py::gil_scoped_release release;
  predict_logits(arg.networks, packed.data(), packed.shape(0), out);
  return logits;
}

py::tuple py_flip_logits(const py::object& object, const py::object& masks) {
  const NetworksArg arg(object);
  const auto packed = packed_masks(masks, arg.networks.n_players);
  const py::ssize_t count = packed.shape(0), e = arg.networks.n_networks;
  py::array_t<float> logits({count, e});
  py::array_t<float> flipped({count, e, py::ssize_t{arg.networks.n_players}});
  float* const out = logits.mutable_data();
  float* const neighbours = flipped.mutable_data();
  {
    const py::gil_scoped_release release;
    flip_logits(arg.networks, packed.data(), count, out, neighbours);
  }
  return py::make_tuple(logits, flipped);
}

py::tuple py_marginals(const py::object& object, const py::object& masks) {
  const NetworksArg arg(object);
  const auto packed = packed_masks(masks, arg.networks.n_players);
  if (packed.shape(0) < 2) throw py::value_error("packed: at least 2 masks, or their mean has no standard error");
  py::array_t<double> mean(arg.networks.n_players);
  py::array_t<double> error(arg.networks.n_players);
  double* const means = mean.mutable_data();
  double* const errors = error.mutable_data();
  {
    const py::gil_scoped_release release;
    marginals(arg.networks, packed.data(), packed.shape(0), means, errors);
  }
  return py::make_tuple(mean, error);
}

// An enumeration that one thread at a time uses. A thread that holds the lock must not wait for the GIL: a thread that
// forks holds the GIL and waits for the lock.
struct SharedEnumeration {
  Enumeration enumeration;
  mutable cpu::ForkMutex one_call;

  SharedEnumeration(const Networks& networks, const EnumerationRequest& request) : enumeration(networks, request) {}

  void run(std::int64_t count) {
    const py::gil_scoped_release release;
    const std::lock_guard<cpu::ForkMutex> lock(one_call);
    enumeration.run(count);
  }
};

std::unique_ptr<SharedEnumeration> make_enumeration(const py::object& object, const py::object& shifts, bool pairs,
                                                    int top, const py::object& costs, double budget) {
  const NetworksArg arg(object);
  const int n = arg.networks.n_players;
  if (n > kMaxEnumerated) {
    throw py::value_error("networks: " + std::to_string(n) + " players are more than " +
                          std::to_string(kMaxEnumerated));
  }
  EnumerationRequest request;
  const auto shift = array<double>(shifts, "shifts", {n + 1});
  require_finite(shift, "shifts");
  request.shifts.assign(shift.data(), shift.data() + shift.size());
  request.pairs = pairs;
  if (top < 0) throw py::value_error("top: must not be negative");
  request.top = top;
  if (!costs.is_none()) {
    const auto cost = array<double>(costs, "costs", {n});
    require_finite(cost, "costs");
    if (!std::isfinite(budget)) throw py::value_error("budget: must be finite");
    request.costs.assign(cost.data(), cost.data() + cost.size());
    request.budget = budget;
  }
  const py::gil_scoped_release release;
  return std::make_unique<SharedEnumeration>(arg.networks, request);
}

// The result of `take`, called while no other thread uses the enumeration. It must be plain values: making Python
// objects may hand the GIL to another thread, and a thread that holds the lock must not wait for it.
template <typename Take>
auto taken(const SharedEnumeration& self, Take take) {
  const py::gil_scoped_release release;
  const std::lock_guard<cpu::ForkMutex> lock(self.one_call);
  return take(self.enumeration);
}

struct Shaped {
  std::vector<double> values;
  std::vector<py::ssize_t> shape;
};

py::array_t<double> array_of(const Shaped& shaped) { return py::array_t<double>(shaped.shape, shaped.values.data()); }

py::tuple best_of(const SharedEnumeration& self, int size) {
  const std::vector<Candidate> best = taken(self, [size](const Enumeration& enumeration) {
    if (size < 0 || size >= static_cast<int>(enumeration.sums().sizes.size())) {
      throw std::invalid_argument("size: out of range");
    }
    return enumeration.best(size);
  });
  py::array_t<std::uint64_t> masks(static_cast<py::ssize_t>(best.size()));
  py::array_t<float> scores(static_cast<py::ssize_t>(best.size()));
  for (std::size_t i = 0; i < best.size(); ++i) {
    masks.mutable_data()[i] = best[i].mask;
    scores.mutable_data()[i] = best[i].score;
  }
  return py::make_tuple(masks, scores);
}

}  // namespace

void bind_surrogate(py::module_& module) {
  module.attr("MAX_ENUMERATED") = kMaxEnumerated;

  module.def("predict_logits", &py_predict_logits, py::arg("networks"), py::arg("packed"));
  module.def("flip_logits", &py_flip_logits, py::arg("networks"), py::arg("packed"));
  module.def("marginals", &py_marginals, py::arg("networks"), py::arg("packed"));

  py::class_<SharedEnumeration> enumeration(module, "Enumeration");
  enumeration.def(py::init(&make_enumeration), py::arg("networks"), py::arg("shifts"), py::kw_only(),
                  py::arg("pairs") = false, py::arg("top") = 0, py::arg("costs") = py::none(), py::arg("budget") = 0.0);
  enumeration.def(
      "run", [](SharedEnumeration& self, std::int64_t count) { self.run(within(count, 0, "count")); },
      py::arg("count"));
  // A property: `take` reads plain values, and `make` turns them into a Python object.
  const auto def_read = [&](const char* name, auto take, auto make) {
    enumeration.def_property_readonly(name,
                                      [take, make](const SharedEnumeration& self) { return make(taken(self, take)); });
  };
  const auto same = [](auto value) { return value; };
  const auto n_of = [](const Enumeration& self) { return static_cast<py::ssize_t>(self.sums().sizes.size()) - 1; };
  def_read("n_tasks", [](const Enumeration& self) { return self.n_tasks(); }, same);
  def_read("n_done", [](const Enumeration& self) { return self.n_done(); }, same);
  def_read(
      "counts", [](const Enumeration& self) -> std::vector<std::int64_t> { return self.counts(); },
      [](const std::vector<std::int64_t>& counts) {
        return py::array_t<std::int64_t>(static_cast<py::ssize_t>(counts.size()), counts.data());
      });
  def_read("sizes", [n_of](const Enumeration& self) { return Shaped{self.sums().sizes, {n_of(self) + 1}}; }, array_of);
  def_read(
      "squares", [n_of](const Enumeration& self) { return Shaped{self.sums().squares, {n_of(self) + 1}}; }, array_of);
  def_read(
      "players", [n_of](const Enumeration& self) { return Shaped{self.sums().players, {n_of(self), n_of(self) + 1}}; },
      array_of);
  def_read(
      "pairs",
      [n_of](const Enumeration& self) { return Shaped{self.sums().pairs, {n_of(self), n_of(self), n_of(self) + 1}}; },
      [](const Shaped& pairs) -> py::object {
        if (pairs.values.empty()) return py::none();
        return array_of(pairs);
      });
  def_read(
      "affordable", [](const Enumeration& self) { return self.affordable(); },
      [](const auto& found) -> py::object {
        if (!found) return py::none();
        return py::make_tuple(found->mask, found->score);
      });
  enumeration.def("best", &best_of, py::arg("size"));
}

}  // namespace layercoop
