// Good masks of every size, found fast: a bound below which the best of all need not be looked for.
#pragma once

#include <vector>

#include "surrogate/networks.h"

namespace layercoop::surrogate {

// scores [n + 1]: for each number of kept players, a score that `top` different masks of that size reach or exceed,
// or −∞ where a beam search in both directions did not find as many. A score is the sum over the networks of the value
// before the output function; these are lowered by more than what float32 could have rounded up. n <= 64.
std::vector<double> reachable_scores(const Networks& networks, int top);

}  // namespace layercoop::surrogate
