// One object of a type for the whole process: the pool, the team, and whatever else owns threads.
//
// It is never destroyed: at exit its threads sleep in it and end with the process. A forked child has none of them and
// may have inherited locked mutexes, so it constructs a new object over the old.
#pragma once

#include <pthread.h>

#include <new>

namespace layercoop::cpu {

template <typename T>
T& one_a_process() {
  alignas(T) static unsigned char storage[sizeof(T)];
  static T* const first = [] {
    pthread_atfork(nullptr, nullptr, [] { new (storage) T; });
    return new (storage) T;
  }();
  return *std::launder(first);
}

}  // namespace layercoop::cpu
