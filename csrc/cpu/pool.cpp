#include "cpu/pool.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/one_a_process.h"

namespace layercoop::cpu {
namespace {

using RangeFn = std::function<void(std::int64_t, std::int64_t)>;

constexpr int kMaxThreads = 1024;

std::atomic<int> thread_count{1};

// True on workers, and on a caller while it runs ranges of its own loop.
thread_local bool inside_loop = false;

// One loop in flight; lives on its caller's stack.
class Loop {
 public:
  Loop(std::int64_t n, std::int64_t grain, const RangeFn& fn) : n_(n), grain_(grain), fn_(fn) {}

  // Takes ranges until none is left. Safe on many threads at once.
  void run() noexcept {
    for (;;) {
      const std::int64_t range = next_.fetch_add(1, std::memory_order_relaxed);
      if (range >= ranges()) return;
      const std::int64_t begin = range * grain_;
      try {
        fn_(begin, begin + std::min(grain_, n_ - begin));
      } catch (...) {
        fail(range);
      }
    }
  }

  std::int64_t ranges() const { return (n_ - 1) / grain_ + 1; }

  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  // Ranges begin in order, so every range below a failed one runs to its end and the lowest failure is always seen.
  void fail(std::int64_t range) noexcept {
    next_.store(ranges(), std::memory_order_relaxed);
    const std::lock_guard<std::mutex> lock(error_mutex_);
    if (error_ && error_range_ < range) return;
    error_ = std::current_exception();
    error_range_ = range;
  }

  const std::int64_t n_;
  const std::int64_t grain_;
  const RangeFn& fn_;
  std::atomic<std::int64_t> next_{0};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::int64_t error_range_ = 0;
};

class Pool {
 public:
  Pool() { inside_loop = false; }  // in a forked child, whose only thread may have forked inside a loop

  std::atomic<Lender> lender{nullptr};

  // False where another thread's loop holds the pool: nothing was run.
  bool try_run(Loop& loop) {
    const std::unique_lock<std::mutex> holds_pool(one_loop_, std::try_to_lock);
    if (!holds_pool) return false;
    if (const Lender lend = lender.load()) {
      // Always as many: OpenMP ends and starts threads where a loop asks for another number than the one before.
      lend(take_ranges, &loop, static_cast<unsigned>(thread_count.load()), 0);
      return true;
    }
    const auto helpers = static_cast<std::size_t>(thread_count.load() - 1);
    if (workers_.size() != helpers) restart(helpers);

    {
      const std::lock_guard<std::mutex> lock(mutex_);
      loop_ = &loop;
      ++generation_;
    }
    const auto wanted = std::min<std::int64_t>(static_cast<std::int64_t>(workers_.size()), loop.ranges() - 1);
    for (std::int64_t i = 0; i < wanted; ++i) wake_.notify_one();

    inside_loop = true;
    loop.run();
    inside_loop = false;

    std::unique_lock<std::mutex> lock(mutex_);
    loop_ = nullptr;  // a worker that wakes only now finds nothing to do
    done_.wait(lock, [this] { return running_ == 0; });
    return true;
  }

 private:
  static void take_ranges(void* loop) {
    inside_loop = true;
    static_cast<Loop*>(loop)->run();
    inside_loop = false;
  }

  void restart(std::size_t helpers) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stop_ = false;
    try {
      while (workers_.size() < helpers) workers_.emplace_back([this] { work(); });
    } catch (const std::system_error&) {
      // The system grants no more threads; the loop works with any number.
    }
  }

  void work() {
    inside_loop = true;
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || (loop_ != nullptr && generation_ != seen); });
      if (stop_) return;
      seen = generation_;
      Loop* const loop = loop_;
      ++running_;
      lock.unlock();
      loop->run();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex one_loop_;  // held from the start of a loop to its end; guards workers_

  std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::condition_variable done_;
  Loop* loop_ = nullptr;
  std::uint64_t generation_ = 0;
  int running_ = 0;
  bool stop_ = false;

  std::vector<std::thread> workers_;
};

}  // namespace

int processors() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

void parallel_for(std::int64_t n, std::int64_t grain, const RangeFn& fn) {
  if (n <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  if (n > grain && num_threads() > 1 && !inside_loop) {
    Loop loop(n, grain, fn);
    if (one_a_process<Pool>().try_run(loop)) return loop.rethrow();
  }
  fn(0, n);
}

void borrow_threads(Lender lender) noexcept { one_a_process<Pool>().lender.store(lender); }

int num_threads() noexcept { return thread_count.load(std::memory_order_relaxed); }

void set_num_threads(std::int64_t count) {
  if (count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("number of threads: " + std::to_string(count) + " is not in 1.." +
                                std::to_string(kMaxThreads));
  }
  thread_count.store(static_cast<int>(count));
}

void set_num_threads_from_environment() {
  const char* text = std::getenv("LAYERCOOP_THREADS");
  if (text == nullptr) return set_num_threads(std::clamp(processors(), 1, kMaxThreads));
  std::int64_t count = 0;
  const char* const end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, count);
  if (error != std::errc() || rest != end || count < 1 || count > kMaxThreads) {
    throw std::invalid_argument("LAYERCOOP_THREADS: '" + std::string(text) + "' is not a number of threads in 1.." +
                                std::to_string(kMaxThreads));
  }
  set_num_threads(count);
}

}  // namespace layercoop::cpu
