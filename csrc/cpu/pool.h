// One thread pool for the process, shared by every kernel.
//
// Threads start with the first loop that needs them and sleep on a condition variable between loops, so that they take
// nothing from torch's own threads. A forked child starts with a fresh pool.
#pragma once

#include <cstdint>
#include <functional>

namespace layercoop::cpu {

// Calls fn(begin, end) for consecutive ranges of at most `grain` that together cover [0, n), on several threads, and
// returns when all are done. Ranges are handed out as threads become free: a kernel's result must not depend on where
// its ranges begin or end.
//
// A loop inside a loop, one that starts while another thread's loop runs, and one of a single range run on the calling
// thread, as one range. An exception cancels the ranges not yet begun and reaches the caller; of several, that of the
// lowest range, whatever the timing.
void parallel_for(std::int64_t n, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& fn);

// Processors that this process may run on.
int processors();

// How many threads a loop may use, the caller's included.
int num_threads() noexcept;

// From the next loop on. Throws std::invalid_argument unless 1 <= count <= 1024.
void set_num_threads(std::int64_t count);

// Sets LAYERCOOP_THREADS, or where it is unset as many threads as this process may run on processors. Throws
// std::invalid_argument for a value that is no count.
void set_num_threads_from_environment();

}  // namespace layercoop::cpu
