// The team and the pool by themselves, for the sanitizers (`make sanitize`): many jobs of many stages, from several
// threads at once, with the number of threads changing in between. Ends with status 1 where a sum is wrong.
#include "cpu/team.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "cpu/pool.h"

using namespace layercoop::cpu;

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "team: %s\n", what);
  std::exit(1);
}

// In each stage a member adds what all members wrote in the stage before: a write that is seen late changes the sum.
std::int64_t stages(int n) {
  std::vector<std::int64_t> written[2] = {std::vector<std::int64_t>(64, 1), std::vector<std::int64_t>(64)};
  run_team(num_threads(), [&](Member& member) {
    for (int stage = 0; stage < n; ++stage) {
      const auto& read = written[stage % 2];
      auto& write = written[(stage + 1) % 2];
      std::int64_t sum = 0;
      for (const std::int64_t number : read) sum += number;
      const int begin = 64 * member.index() / member.count();
      const int end = 64 * (member.index() + 1) / member.count();
      for (int i = begin; i < end; ++i) write[static_cast<std::size_t>(i)] = sum % 1000003;
      member.barrier();
    }
  });
  return written[n % 2][0];
}

}  // namespace

int main() {
  set_num_threads(1);
  const std::int64_t expected = stages(200);
  for (const int threads : {2, 3, 2, 5, 1, 4}) {
    set_num_threads(threads);
    for (int job = 0; job < 20; ++job) {
      expect(stages(200) == expected, "a stage saw less than the one before it wrote");
      if (job % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));  // threads fall asleep
    }
  }
  run_team(num_threads(), [&](Member& outer) {
    if (outer.index() == 0) expect(stages(50) != 0, "a job inside a job");
    outer.barrier();
  });
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&] {
      for (int job = 0; job < 10; ++job) {
        expect(stages(200) == expected, "jobs of several callers mixed");
        std::atomic<std::int64_t> sum{0};
        parallel_for(1000, 10, [&](std::int64_t begin, std::int64_t end) { sum += end - begin; });
        expect(sum == 1000, "a loop lost a range");
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  set_num_threads(2);
  stages(1000);
  const auto started = std::chrono::steady_clock::now();
  stages(20000);
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - started;
  std::printf("team: ok, %.2f us a stage on two threads\n", took.count() / 20000);
  return 0;
}
