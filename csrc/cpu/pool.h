// One thread pool for the process, shared by every kernel.
//
// Threads start with the first loop that needs them and sleep on a condition variable between loops, so that they take
// no time from torch's own threads. Or loops run on these: see `borrow_threads`. A forked child starts with a fresh
// pool.
#pragma once

#include <cstdint>
#include <functional>

namespace layercoop::cpu {

// Calls fn(begin, end) for consecutive ranges of at most `grain` that together cover [0, n), on several threads, and
// returns when all are done. Ranges are handed out as threads become free, so a kernel's result must not depend on
// where its ranges begin or end.
//
// Three kinds of loops run on the calling thread, as one range: a loop inside a loop, a loop that starts while another
// thread's loop runs, and a loop of a single range. An exception cancels the ranges that have not begun and reaches the
// caller; if several throw, the exception of the lowest range does, whatever the timing.
void parallel_for(std::int64_t n, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& fn);

// Calls task(data) on so many threads, the caller among them, and returns when all calls have: GOMP_parallel's form.
using Lender = void (*)(void (*task)(void*), void* data, unsigned threads, unsigned flags);

// From the next loop on threads are those of another library: of OpenMP, which torch's products run on. Between
// products these wait without sleeping, so that they begin at once, and threads of our own would share their processors
// with them. Null: our own again. A forked child is back on its own.
void borrow_threads(Lender lender) noexcept;

// Processors that this process may run on.
int processors();

// How many threads a loop may use, the caller's included.
int num_threads() noexcept;

// Takes effect with the next loop. Throws std::invalid_argument unless 1 <= count <= 1024.
void set_num_threads(std::int64_t count);

// Sets the number of threads to LAYERCOOP_THREADS, or to `processors()` where that variable is unset. Throws
// std::invalid_argument for a value that is not a count.
void set_num_threads_from_environment();

}  // namespace layercoop::cpu
