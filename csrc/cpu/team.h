// Threads that work on one job together, all at once, and meet at barriers inside it.
//
// The pool (pool.h) hands out ranges in no order. A job of some hundred short stages, each of which needs all results
// of the one before, would spend its time there on waking threads. A team's threads enter the job once and wait for
// each other by watching a number. A waiting thread spins for some microseconds, then sleeps, so that other programs
// get the processor.
#pragma once

#include <functional>

namespace layercoop::cpu {

class Team;
class Member;

// Calls job(member) on up to `threads` threads at once, the caller's as index 0, and returns when all have returned.
// There are fewer threads where the system grants no more, and only the caller's where another job is running, on this
// thread or elsewhere; a job's result must not depend on their number. A job must not throw: the other threads would
// wait forever.
//
// Threads start with the first job that needs them, and a forked child starts with none.
void run_team(int threads, const std::function<void(Member&)>& job);

// One thread's place in a team while a job runs.
class Member {
 public:
  int index() const noexcept { return index_; }
  // Threads in the team, this one included.
  int count() const noexcept { return count_; }
  // Returns when all members have called it. Then each sees what all wrote before.
  void barrier() noexcept;

 private:
  friend class Team;
  friend void run_team(int threads, const std::function<void(Member&)>& job);
  Member(Team* team, int index, int count) : team_(team), index_(index), count_(count) {}

  Team* team_;  // null in a team of one
  int index_;
  int count_;
};

}  // namespace layercoop::cpu
