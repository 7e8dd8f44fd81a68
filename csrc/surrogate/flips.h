// Logits of given masks, and what each player adds to them: the ensemble over packed masks of any number of players.
#pragma once

#include <cstdint>
#include <memory>

#include "surrogate/networks.h"

namespace layercoop::surrogate {

// logits [count, E] of packed masks [count, words(n)]: the values before the output function, in float32.
void predict_logits(const Networks& networks, const std::uint64_t* masks, std::int64_t count, float* logits);

// logits [count, E] as above, and flipped [count, E, n] of each mask with player i flipped.
void flip_logits(const Networks& networks, const std::uint64_t* masks, std::int64_t count, float* logits,
                 float* flipped);

// Over the masks m: mean [n] and standard error [n] of f(m with i) − f(m without i), f the ensemble's mean value and
// the masks independent draws. count >= 2. No array of the size [masks, players] is allocated, and the results do not
// depend on the number of threads.
void marginals(const Networks& networks, const std::uint64_t* masks, std::int64_t count, double* mean, double* stderr_);

// Scores of one mask at a time, n <= 64. A score is the sum over the networks of the logits.
class Flipper {
 public:
  explicit Flipper(const Networks& networks);
  ~Flipper();

  // The score of `mask`, and `flipped` [n] with one player flipped.
  double scores(std::uint64_t mask, double* flipped) const;

 private:
  struct Tables;
  std::unique_ptr<Tables> tables_;
};

}  // namespace layercoop::surrogate
