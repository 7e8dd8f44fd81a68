// Slopes of attention and of what is rowwise, and steps of AdamW, for the sanitizers (`make sanitize`): arrays of just
// their sizes, odd ones, at each instruction set. Ends with status 1 where threads change a bit.
#include "blocks/slopes.h"

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/pool.h"

using namespace layercoop;
using namespace layercoop::blocks;

namespace {

std::mt19937 generator(0);

float as(float x, float) { return x; }
Bf16 as(float x, Bf16) { return {to_bf16(x)}; }

template <typename T>
std::vector<T> numbers(std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<T> made(static_cast<std::size_t>(count));
  for (T& number : made) number = as(normal(generator), T{});
  return made;
}

template <typename T>
void append(std::vector<char>& all, const std::vector<T>& some) {
  const char* bytes = reinterpret_cast<const char*>(some.data());
  all.insert(all.end(), bytes, bytes + some.size() * sizeof(T));
}

// The bytes of everything that is computed.
template <typename T>
std::vector<char> slopes() {
  generator.seed(1);
  std::vector<char> all;
  const std::int64_t sizes[][5] = {{1, 1, 1, 1, 1}, {2, 53, 3, 1, 17}, {1, 97, 4, 2, 80}, {3, 12, 2, 2, 64}};
  for (const auto& [windows, tokens, heads, kv_heads, width] : sizes) {
    const std::int64_t rows = windows * tokens;
    const std::int64_t columns = (heads + 2 * kv_heads) * width;
    const auto qkv = numbers<T>(rows * columns);
    const auto slope = numbers<T>(rows * heads * width);
    const auto mixed = numbers<T>(rows * heads * width);
    std::vector<T> out(qkv.size());
    run(AttentionSlopes<T>{qkv.data(), slope.data(), mixed.data(), windows, tokens, heads, kv_heads, width, 0.3f,
                           out.data()});
    append(all, out);
  }
  for (const std::int64_t width : {1, 17, 130}) {
    const std::int64_t rows = 700;
    const auto x = numbers<T>(rows * width);
    const auto slope = numbers<T>(rows * width);
    const auto weight = numbers<T>(width);
    std::vector<T> out(x.size()), of_weight(weight.size());
    std::vector<float> factors(static_cast<std::size_t>(rows));
    run(NormSlopes<T>{x.data(), weight.data(), slope.data(), x.data(), 1e-5f, rows, width, factors.data(), out.data()});
    run(NormWeightSlopes<T>{x.data(), slope.data(), factors.data(), rows, width, of_weight.data()});
    append(all, out);
    append(all, of_weight);
    const auto gates = numbers<T>(rows * 2 * width);
    std::vector<T> of_gates(gates.size());
    run(GatedSlopes<T>{gates.data(), slope.data(), rows, width, of_gates.data()});
    append(all, of_gates);
    auto logits = numbers<T>(rows * width);
    std::vector<float> values(static_cast<std::size_t>(rows));
    run(Divergence<T>{logits.data(), x.data(), rows, width, 1.0f, 3.0f, 1.0f, 0.0f, values.data()});
    append(all, logits);
    append(all, values);
    const std::vector<std::int64_t> tokens(static_cast<std::size_t>(rows), width - 1);
    const std::vector<float> log_probs(tokens.size(), -0.5f), rest(tokens.size(), 0.4f);
    run(NamedDivergence<T>{logits.data(), tokens.data(), log_probs.data(), rest.data(), rows, width, 1, 1.0f, 0.0f,
                           values.data()});
    append(all, logits);
    append(all, values);
  }
  for (const std::int64_t n : {1, 4097, 200001}) {
    const auto gradient = numbers<T>(n);
    auto value = numbers<float>(n), first = numbers<float>(n), second = numbers<float>(n);
    for (float& each : second) each *= each;
    std::vector<T> weight(gradient.size());
    run(AdamW<T>{gradient.data(), n, 0.5f, 0.1f, 0.95f, 0.05f, 1e-8f, 1e-3f, 0.3f, value.data(), first.data(),
                 second.data(), weight.data()});
    append(all, value);
    append(all, weight);
    std::vector<float> sums(static_cast<std::size_t>((n + kSquaresAtOnce - 1) / kSquaresAtOnce));
    run(SumsOfSquares<T>{gradient.data(), n, sums.data()});
    append(all, sums);
  }
  return all;
}

template <typename T>
bool same_by_three() {
  cpu::set_num_threads(1);
  const std::vector<char> expected = slopes<T>();
  cpu::set_num_threads(3);
  return slopes<T>() == expected;
}

}  // namespace

int main() {
  for (const cpu::Isa level : cpu::available_isas()) {
    cpu::set_isa(cpu::isa_name(level));
    if (!same_by_three<float>() || !same_by_three<Bf16>()) {
      std::fprintf(stderr, "slopes: threads change what comes out\n");
      return 1;
    }
  }
  std::printf("slopes: ok\n");
  return 0;
}
