// Parallel work on the threads of XLA, and buffers for it.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>

#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace attention {

// Floats aligned to a cache line.
class Buffer {
 public:
  float* reserve(long count) {
    if (count > size_) {
      std::free(data_);
      data_ = static_cast<float*>(std::aligned_alloc(64, round_up(count, 16) * sizeof(float)));
      size_ = data_ ? count : 0;
    }
    return data_;
  }
  ~Buffer() { std::free(data_); }

 private:
  float* data_ = nullptr;
  long size_ = 0;
};

// Runs work(0), ..., work(count - 1) on this thread and on free threads of the pool. It does not
// wait for threads that have not started, so simultaneous calls on all threads cannot deadlock.
template <typename Work>
void share(xla::ffi::ThreadPool& pool, long count, const Work& work) {
  struct State {
    std::atomic<long> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable ended;
  };
  auto state = std::make_shared<State>();
  // A late thread must not touch `work`; it finds that no item is left.
  auto run = [state, count, &work] {
    long finished = 0;
    for (long i; (i = state->next.fetch_add(1)) < count; ++finished) work(i);
    if (finished && state->done.fetch_add(finished) + finished == count) {
      std::lock_guard<std::mutex> lock(state->mutex);
      state->ended.notify_all();
    }
  };
  long helpers = std::min<long>(pool.num_threads(), count) - 1;
  for (long i = 0; i < helpers; ++i) pool.Schedule([run] { run(); });
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->ended.wait(lock, [&] { return state->done.load() == count; });
}

}  // namespace attention
