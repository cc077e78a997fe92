// Work on the threads that XLA has, and memory for it.
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

// Floats on a cache line's border.
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

// Does work(0), ..., work(count - 1), on this thread and on those of the pool that are free. Nothing
// waits for a thread that has not begun, so that calls on every thread of the pool at once end.
template <typename Work>
void share(xla::ffi::ThreadPool& pool, long count, const Work& work) {
  struct State {
    std::atomic<long> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable ended;
  };
  auto state = std::make_shared<State>();
  // What a thread that comes late must not touch is the work; it sees that nothing is left.
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
