// Reordering of rows in place on a CPU, called by XLA; see kernels/rows.py.

#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"

namespace ffi = xla::ffi;

namespace attention {
namespace {

using Indices = ffi::Buffer<ffi::S32, 2>;

// Bytes of each row that are moved at a time: those of all rows of an example fit into the first
// cache.
constexpr long kChunk = 2048;
// Bytes from which the work is shared among threads.
constexpr long kLarge = 1 << 18;

// y[b, n] = x[b, rows[b, n]] for x [B, K, size bytes] in the memory of y.
ffi::Error reorder(ffi::ThreadPool pool, ffi::AnyBuffer x, Indices rows,
                   ffi::Result<ffi::AnyBuffer> y) {
  const long B = rows.dimensions()[0], K = rows.dimensions()[1];
  if (B * K == 0) return ffi::Error::Success();
  const long size = static_cast<long>(x.size_bytes()) / (B * K);
  const char* from = static_cast<const char*>(x.untyped_data());
  char* to = static_cast<char*>(y->untyped_data());
  // XLA copies x if it is needed later; then it is not in the memory of y.
  if (from != to) std::memcpy(to, from, x.size_bytes());
  const int32_t* sources = rows.typed_data();
  auto example = [&](long b) {
    const int32_t* source = sources + b * K;
    std::vector<long> moved;
    for (long n = 0; n < K; ++n) {
      if (source[n] < 0 || source[n] >= K) return false;
      if (source[n] != n) moved.push_back(n);
    }
    char* start = to + b * K * size;
    std::vector<char> held(moved.size() * kChunk);
    for (long at = 0; at < size && !moved.empty(); at += kChunk) {
      const long length = std::min(kChunk, size - at);
      for (size_t i = 0; i < moved.size(); ++i)
        std::memcpy(&held[i * kChunk], start + source[moved[i]] * size + at, length);
      for (size_t i = 0; i < moved.size(); ++i)
        std::memcpy(start + moved[i] * size + at, &held[i * kChunk], length);
    }
    return true;
  };
  std::atomic<bool> inside{true};
  auto work = [&](long b) { if (!example(b)) inside = false; };
  if (B * K * size < kLarge) {
    for (long b = 0; b < B; ++b) work(b);
  } else {
    share(pool, B, work);
  }
  return inside ? ffi::Error::Success()
                : ffi::Error(ffi::ErrorCode::kOutOfRange, "rows: an index is out of range");
}

}  // namespace
}  // namespace attention

XLA_FFI_DEFINE_HANDLER_SYMBOL(ReorderRows, attention::reorder,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<attention::Indices>()
                                  .Ret<xla::ffi::AnyBuffer>());
