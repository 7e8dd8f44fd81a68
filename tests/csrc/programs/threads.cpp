// Threads that share a model as Python's do, for the sanitizers (`make sanitize`): calls of one workspace under its
// lock, calls with their own workspaces on the shared team, matrices filled by two threads, rotary tables that grow
// and the number of threads changed in between. Ends with status 1 where another thread changes a bit.
#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/fork_mutex.h"
#include "cpu/pool.h"
#include "small_models.h"

using namespace small;

namespace {

// A model as bind_decode.cpp holds it.
struct Shared {
  Model model;
  Workspace workspace;
  cpu::ForkMutex one_call;
};

std::atomic<int> wrong{0};

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "threads: %s\n", what);
  ++wrong;
}

std::vector<float> locked(Shared& shared, KvFormat kv, std::int32_t piece) {
  return logits(shared.model, kv, 37, piece, [&](const KvMemory& memory, const Rows& rows, const Results& results) {
    const std::lock_guard<cpu::ForkMutex> lock(shared.one_call);
    step(shared.model, memory, shared.workspace, rows, results);
  });
}

// Two threads that pack a half of a matrix each give the bits of one thread.
void fill_by_two(Format format) {
  constexpr std::int64_t rows = 70, columns = 50;
  const std::vector<float> weights(rows * columns, 0.25f);
  Matrix one(format, rows, columns), two(format, rows, columns);
  one.fill(0, rows, weights.data(), Origin::fp32);
  std::thread other([&] { two.fill(0, 33, weights.data(), Origin::fp32); });
  two.fill(33, rows - 33, weights.data() + 33 * columns, Origin::fp32);
  other.join();
  expect(std::equal(one.tile(0), one.tile(0) + one.bytes(), two.tile(0)), "two threads pack another matrix");
}

}  // namespace

int main() {
  for (const Format format : {Format::fp32, Format::int8, Format::int4}) {
    Shared shared;
    shared.model = make({33, 4, 2, 6, 35, 17}, format);
    cpu::set_num_threads(1);
    const std::vector<float> expected = logits(shared.model, KvFormat::fp32, 37, 37);
    cpu::set_num_threads(3);
    const Model fixed = shared.model;  // a copy that shares its matrices
    std::atomic<bool> done{false};
    std::vector<std::thread> threads;
    for (int caller = 0; caller < 4; ++caller) {
      threads.emplace_back([&, caller] {
        for (const std::int32_t piece : {37, 8, 1}) {
          expect(locked(shared, KvFormat::fp32, piece) == expected, "another thread changes a shared model's logits");
          if (caller % 2 != 0) continue;
          const bool own = logits(fixed, KvFormat::fp32, 37, piece) == expected;
          expect(own, "another thread changes the logits of a workspace");
        }
      });
    }
    std::thread growing([&] {
      for (int at = 0; !done; ++at) {
        std::vector<Rotary> rotaries = fixed.rotaries;
        {
          const std::lock_guard<cpu::ForkMutex> lock(shared.one_call);
          shared.model.rotaries = std::move(rotaries);
        }
        cpu::set_num_threads(1 + at % 3);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
    });
    for (int time = 0; time < 5; ++time) fill_by_two(format);
    for (std::thread& thread : threads) thread.join();
    done = true;
    growing.join();
  }
  if (wrong == 0) std::printf("threads: ok\n");
  return wrong != 0;
}
