// The mutex that is free in a forked child, for the sanitizers (`make sanitize`): threads take it in turn while others
// create and destroy such mutexes and children are forked. In every child the guarded data is complete and the mutex
// free.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/fork_mutex.h"

using layercoop::cpu::ForkMutex;

namespace {

struct Pair {
  ForkMutex mutex;
  int first = 0;
  int second = 0;
};

bool is_whole(Pair& pair) {
  const std::lock_guard<ForkMutex> lock(pair.mutex);
  return pair.first == pair.second;
}

}  // namespace

int main() {
  Pair pair;
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!done) {
        {
          const std::lock_guard<ForkMutex> lock(pair.mutex);
          ++pair.first;
          std::this_thread::yield();  // a fork that did not wait would mostly happen here
          ++pair.second;
        }
        ForkMutex short_lived;
        const std::lock_guard<ForkMutex> lock(short_lived);
      }
    });
  }
  int broken = 0;
  for (int child = 0; child < 50; ++child) {
    const pid_t forked = fork();
    if (forked == 0) {
      alarm(10);  // a child that waits forever is a failure too
      _exit(is_whole(pair) ? 0 : 1);
    }
    int status = 1;
    if (forked < 0 || waitpid(forked, &status, 0) != forked || status != 0) ++broken;
  }
  done = true;
  for (std::thread& thread : threads) thread.join();
  if (broken != 0)
    std::fprintf(stderr, "fork: %d of 50 children found a pair half written, or no lock\n", broken);
  else
    std::printf("fork: ok\n");
  return broken != 0;
}
