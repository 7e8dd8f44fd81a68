#include "surrogate/beam.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "surrogate/flips.h"

namespace layercoop::surrogate {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSlack =
    1e-5;  // of the largest value: over twenty times what the rounding errors of all units can add up to

struct Scored {
  double score;
  std::uint64_t mask;
};

bool better(const Scored& a, const Scored& b) { return a.score != b.score ? a.score > b.score : a.mask < b.mask; }

// The `width` best of `found`, each mask once. One mask found twice has two scores that differ by rounding.
void keep_best(std::vector<Scored>& found, std::size_t width) {
  std::sort(found.begin(), found.end(),
            [](const Scored& a, const Scored& b) { return a.mask != b.mask ? a.mask < b.mask : a.score < b.score; });
  const auto same = [](const Scored& a, const Scored& b) { return a.mask == b.mask; };
  found.erase(std::unique(found.begin(), found.end(), same), found.end());
  if (found.size() <= width) return;
  std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(width), found.end(), better);
  found.resize(width);
}

}  // namespace

std::vector<double> reachable_scores(const Networks& networks, int top) {
  const int n = networks.n_players;
  const auto width = static_cast<std::size_t>(top);
  const std::uint64_t all = n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
  const Flipper flipper(networks);
  std::vector<std::vector<Scored>> found(static_cast<std::size_t>(n) + 1);
  std::vector<double> neighbours(static_cast<std::size_t>(n));

  for (const bool up : {true, false}) {
    std::vector<Scored> beam{{flipper.scores(up ? 0 : all, neighbours.data()), up ? 0 : all}};
    for (int step = 0; step <= n; ++step) {
      std::vector<Scored>& of_size = found[static_cast<std::size_t>(up ? step : n - step)];
      of_size.insert(of_size.end(), beam.begin(), beam.end());
      std::vector<Scored> next;
      for (const Scored& parent : beam) {
        flipper.scores(parent.mask, neighbours.data());
        for (int i = 0; i < n; ++i) {
          const std::uint64_t bit = std::uint64_t{1} << i;
          if (((parent.mask & bit) == 0) != up) continue;
          next.push_back({neighbours[static_cast<std::size_t>(i)], parent.mask ^ bit});
        }
      }
      keep_best(next, width);
      beam = std::move(next);
    }
  }

  const double slack = kSlack * networks.n_networks * largest_value(networks);
  std::vector<double> scores(found.size(), -kInfinity);
  for (std::size_t size = 0; size < found.size(); ++size) {
    keep_best(found[size], width);
    if (found[size].size() < width) continue;
    scores[size] = std::max_element(found[size].begin(), found[size].end(), better)->score - slack;
  }
  return scores;
}

}  // namespace layercoop::surrogate
