// A mutex that is free in a forked child: forking waits until no thread holds it.
//
// So the child finds the guarded data complete. Otherwise a thread of the parent could be in the middle of changing it,
// and the child, which has no such thread, could never finish the change nor take the lock.
#pragma once

#include <mutex>

namespace layercoop::cpu {

class ForkMutex {
 public:
  ForkMutex();
  ~ForkMutex();
  ForkMutex(const ForkMutex&) = delete;
  ForkMutex& operator=(const ForkMutex&) = delete;

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

}  // namespace layercoop::cpu
