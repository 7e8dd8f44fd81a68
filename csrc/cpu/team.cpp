#include "cpu/team.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/one_a_process.h"
#include "cpu/pool.h"

namespace layercoop::cpu {
namespace {

// How often a waiting thread looks before it sleeps, between pauses of some tens of nanoseconds. It never yields the
// processor: two threads that wait for each other by yields on one processor both stay ready to run there, and Linux
// moves one of them to an idle processor only some milliseconds later. One that sleeps is woken on an idle processor.
constexpr int kPauses = 2000;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

// A number that threads wait to see change.
class Gate {
 public:
  std::uint32_t now() const noexcept { return number_.load(std::memory_order_acquire); }

  void open() noexcept {
    number_.fetch_add(1);
    // A thread that is about to sleep counts itself first and then looks once more, so one of the two sees the other.
    if (sleepers_.load() == 0) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }

  // Waits until the number differs from `seen`. `patient` threads do not spin: there are more of them than processors.
  void wait(std::uint32_t seen, bool patient) noexcept {
    for (int i = patient ? kPauses : 0; i < kPauses; ++i) {
      if (now() != seen) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    while (number_.load() == seen) wake_.wait(lock);
    sleepers_.fetch_sub(1);
  }

 private:
  std::atomic<std::uint32_t> number_{0};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

thread_local bool inside_job = false;

}  // namespace

class Team {
 public:
  Team() { inside_job = false; }  // in a forked child, whose only thread may have forked inside a job

  // False where another thread's job holds the team: nothing was run.
  bool try_run(int threads, const std::function<void(Member&)>& job) {
    const std::unique_lock<std::mutex> holds_team(one_job_, std::try_to_lock);
    if (!holds_team) return false;
    if (wanted_ != threads) restart(threads);
    count_ = static_cast<int>(threads_.size()) + 1;
    job_ = &job;
    start_.open();
    work(0);
    return true;
  }

  // `count` is the member's own copy: a thread that has just passed the last barrier may find the next job's in count_.
  void barrier(int count) noexcept {
    const std::uint32_t seen = met_.now();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
      arrived_.store(0, std::memory_order_relaxed);
      met_.open();
    } else {
      met_.wait(seen, patient_);
    }
  }

 private:
  void work(int index) noexcept {
    inside_job = true;
    Member member(this, index, count_);
    (*job_)(member);
    member.barrier();  // after it no thread looks at the job
    inside_job = false;
  }

  void restart(int wanted) {
    stop_ = true;
    start_.open();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    stop_ = false;
    patient_ = wanted > processors();
    try {
      for (int index = 1; index < wanted; ++index) {
        threads_.emplace_back([this, index, seen = start_.now()]() mutable {
          for (;;) {
            start_.wait(seen, patient_);
            if (stop_) return;
            ++seen;
            work(index);
          }
        });
      }
    } catch (const std::system_error&) {
      // The system grants no more threads; a job works with any number.
    }
    wanted_ = wanted;
  }

  std::mutex one_job_;  // held from the start of a job to its end; the members below change only between jobs
  std::vector<std::thread> threads_;
  int wanted_ = 1;
  int count_ = 1;
  bool patient_ = false;
  bool stop_ = false;
  const std::function<void(Member&)>* job_ = nullptr;

  Gate start_;
  Gate met_;
  alignas(64) std::atomic<int> arrived_{0};
};

void Member::barrier() noexcept {
  if (count_ > 1) team_->barrier(count_);
}

void run_team(int threads, const std::function<void(Member&)>& job) {
  if (threads > 1 && !inside_job && one_a_process<Team>().try_run(threads, job)) return;
  Member alone(nullptr, 0, 1);
  job(alone);
}

}  // namespace layercoop::cpu
