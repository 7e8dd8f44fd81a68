// A mutex that nobody holds in a forked child: forking waits until it is free.
//
// What it guards is whole in the child then, where a thread of the parent would have been half through with it and, not
// being in the child, would never have gone on.
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
