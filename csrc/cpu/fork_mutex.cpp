#include "cpu/fork_mutex.h"

#include <pthread.h>

#include <set>

namespace layercoop::cpu {
namespace {

// All mutexes that exist. Never destroyed, since a fork may come at any time.
struct Registry {
  std::mutex mutex;
  std::set<ForkMutex*> all;
};

Registry& registry() {
  static Registry* const one = [] {
    pthread_atfork(
        [] {
          registry().mutex.lock();
          for (ForkMutex* each : registry().all) each->lock();
        },
        [] {
          for (ForkMutex* each : registry().all) each->unlock();
          registry().mutex.unlock();
        },
        [] {
          for (ForkMutex* each : registry().all) each->unlock();
          registry().mutex.unlock();
        });
    return new Registry;
  }();
  return *one;
}

}  // namespace

ForkMutex::ForkMutex() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().all.insert(this);
}

ForkMutex::~ForkMutex() {
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().all.erase(this);
}

}  // namespace layercoop::cpu
