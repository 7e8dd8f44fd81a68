// A fast search for good masks of every size, whose scores bound the best scores from below.
#pragma once

#include <vector>

#include "surrogate/networks.h"

namespace layercoop::surrogate {

// scores [n + 1]: for each number of kept players, a score that `top` different masks of that size reach or exceed,
// or −∞ where a beam search in both directions found fewer. A score is the sum over the networks of the value
// before the output function; the scores are lowered by more than any rounding error in float32. n <= 64.
std::vector<double> reachable_scores(const Networks& networks, int top);

}  // namespace layercoop::surrogate
