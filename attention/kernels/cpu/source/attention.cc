// Attention on a CPU, called by XLA; kernels/cpu/attention.py defines the arguments.

#include "backward.h"
#include "decode.h"
#include "forward.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace attention {
namespace {

template <typename T>
T* data(const ffi::AnyBuffer& buffer) {
  return buffer.element_count() ? static_cast<T*>(buffer.untyped_data()) : nullptr;
}

// Strides of the first two dimensions of an array; 0 for size 1, which is shared.
template <typename T>
Shared<T> shared(const ffi::AnyBuffer& buffer, bool by_head) {
  auto sizes = buffer.dimensions();
  Shared<T> result{data<T>(buffer)};
  if (!result) return {};
  long inner = 1;
  for (size_t i = by_head ? 2 : 1; i < sizes.size(); ++i) inner *= sizes[i];
  long heads = by_head ? sizes[1] : 1;
  if (sizes[0] > 1) result.batch = heads * inner;
  if (by_head && heads > 1) result.head = inner;
  return result;
}

struct Options {
  float scale, cap, kept_scale;
  int32_t threshold, total_heads;
  bool heads_first;
};

struct Arguments {
  ffi::AnyBuffer query, key, value, low, high, query_ids, key_ids, valid, dense, codes, tiles, bias,
      sinks, keys, examples, heads;
};

Problem problem(const Arguments& a, const Options& o) {
  Problem p;
  auto q = a.query.dimensions(), k = a.key.dimensions(), v = a.value.dimensions();
  p.B = q[0], p.T = q[1], p.N = q[2], p.H = q[3];
  p.S = k[1], p.K = k[2], p.V = v[3];
  p.half = a.query.element_type() == ffi::BF16;
  p.heads_first = o.heads_first;
  p.query = a.query.untyped_data(), p.key = a.key.untyped_data(), p.value = a.value.untyped_data();
  p.scale = o.scale, p.cap = o.cap;
  p.low = shared<const int32_t>(a.low, false);
  p.high = shared<const int32_t>(a.high, false);
  p.query_ids = shared<const int32_t>(a.query_ids, false);
  p.key_ids = shared<const int32_t>(a.key_ids, false);
  p.valid = shared<const uint8_t>(a.valid, false);
  p.dense = shared<const uint8_t>(a.dense, true);
  p.codes = data<const int32_t>(a.codes);
  p.tiles = data<const uint8_t>(a.tiles);
  p.bias = shared<const float>(a.bias, true);
  p.sinks = shared<const float>(a.sinks, false);
  p.keys = shared<const uint32_t>(a.keys, false);
  p.examples = data<const int32_t>(a.examples);
  p.heads = data<const int32_t>(a.heads);
  p.total_heads = o.total_heads;
  p.threshold = static_cast<uint32_t>(o.threshold);
  p.kept_scale = o.kept_scale;
  return p;
}

// One per example, or one for all if they share the mask.
std::vector<Sight> sights(const Problem& p) {
  bool differ = p.low.batch || p.high.batch || p.query_ids.batch || p.key_ids.batch ||
                p.valid.batch || p.dense.batch;
  std::vector<Sight> result;
  for (long b = 0; b < (differ ? p.B : 1); ++b) result.emplace_back(p, b);
  return result;
}

void forward(ffi::ThreadPool& pool, const Problem& p, const ForwardOutputs& out) {
  auto seen = sights(p);
  auto sight = [&](long b) -> const Sight& { return seen[seen.size() == 1 ? 0 : b]; };
  if (p.heads_first && p.T <= kQueries) {
    long splits = decode_splits(p, pool.num_threads()), size = part_size(p);
    std::vector<float> parts(p.B * p.K * splits * size);
    share(pool, p.B * p.K * splits, [&](long item) {
      long head = item / splits;
      decode_part(p, sight(head / p.K), head / p.K, head % p.K, item % splits, splits,
                  parts.data() + item * size);
    });
    for (long head = 0; head < p.B * p.K; ++head)
      decode_join(p, out, head / p.K, head % p.K, splits, parts.data() + head * splits * size);
    return;
  }
  long chunk = chunk_of(p), chunks = (p.T + chunk - 1) / chunk;
  share(pool, p.B * p.K * chunks, [&](long item) {
    // Late queries first: they take longest under a causal mask.
    long from = (chunks - 1 - item / (p.B * p.K)) * chunk, head = item % (p.B * p.K);
    forward_chunk(p, out, sight(head / p.K), head / p.K, head % p.K, from,
                  std::min(p.T, from + chunk));
  });
}

void backward(ffi::ThreadPool& pool, const Problem& p, const BackwardArrays& arrays) {
  auto seen = sights(p);
  Cut c = cut(p, arrays, pool.num_threads());
  Buffer buffer;
  float* partial = nullptr;
  if (c.splits > 1) partial = buffer.reserve(c.splits * p.B * p.N * p.T * p.head_width());
  share(pool, c.items(), [&](long item) { backward_item(p, arrays, seen, c, item, partial); });
  if (partial)
    share(pool, p.B * p.K, [&](long head) {
      join_splits(p, arrays, c.splits, head / p.K, head % p.K, partial);
    });
}

ffi::Error run_forward(ffi::ThreadPool pool, Arguments arguments, Options options,
                       ffi::Result<ffi::AnyBuffer> output, ffi::Result<ffi::AnyBuffer> log_sum) {
  Problem p = problem(arguments, options);
  if (p.B && p.T && p.N)
    forward(pool, p, {output->untyped_data(), log_sum->typed_data<float>()});
  return ffi::Error::Success();
}

ffi::Error run_backward(ffi::ThreadPool pool, Arguments arguments, Options options,
                        ffi::AnyBuffer output, ffi::AnyBuffer log_sum, ffi::AnyBuffer cotangent,
                        ffi::Result<ffi::AnyBuffer> query, ffi::Result<ffi::AnyBuffer> key,
                        ffi::Result<ffi::AnyBuffer> value, ffi::Result<ffi::AnyBuffer> bias) {
  Problem p = problem(arguments, options);
  BackwardArrays arrays{output.untyped_data(), cotangent.untyped_data(),
                        log_sum.typed_data<float>(), query->untyped_data(), key->untyped_data(),
                        value->untyped_data(), shared<float>(*bias, true)};
  if (p.B && p.T && p.N && p.S) backward(pool, p, arrays);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace attention

namespace {

using attention::Arguments;
using attention::Options;
using Buffer = ffi::AnyBuffer;

ffi::Error forward_handler(ffi::ThreadPool pool, float scale, float cap, float kept_scale,
                           int32_t threshold, int32_t total_heads, bool heads_first, Buffer query,
                           Buffer key, Buffer value, Buffer low, Buffer high, Buffer query_ids,
                           Buffer key_ids, Buffer valid, Buffer dense, Buffer codes, Buffer tiles,
                           Buffer bias, Buffer sinks, Buffer keys, Buffer examples, Buffer heads,
                           ffi::Result<Buffer> output, ffi::Result<Buffer> log_sum) {
  return attention::run_forward(
      pool,
      {query, key, value, low, high, query_ids, key_ids, valid, dense, codes, tiles, bias, sinks,
       keys, examples, heads},
      {scale, cap, kept_scale, threshold, total_heads, heads_first}, output, log_sum);
}

ffi::Error backward_handler(ffi::ThreadPool pool, float scale, float cap, float kept_scale,
                            int32_t threshold, int32_t total_heads, bool heads_first, Buffer query,
                            Buffer key, Buffer value, Buffer low, Buffer high, Buffer query_ids,
                            Buffer key_ids, Buffer valid, Buffer dense, Buffer codes, Buffer tiles,
                            Buffer bias, Buffer sinks, Buffer keys, Buffer examples, Buffer heads,
                            Buffer output, Buffer log_sum, Buffer cotangent,
                            ffi::Result<Buffer> query_gradient, ffi::Result<Buffer> key_gradient,
                            ffi::Result<Buffer> value_gradient,
                            ffi::Result<Buffer> bias_gradient) {
  return attention::run_backward(
      pool,
      {query, key, value, low, high, query_ids, key_ids, valid, dense, codes, tiles, bias, sinks,
       keys, examples, heads},
      {scale, cap, kept_scale, threshold, total_heads, heads_first}, output, log_sum, cotangent,
      query_gradient, key_gradient, value_gradient, bias_gradient);
}

auto common() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Attr<float>("scale").Attr<float>("cap").Attr<float>("kept_scale")
      .Attr<int32_t>("threshold").Attr<int32_t>("total_heads").Attr<bool>("heads_first")
      .Arg<Buffer>().Arg<Buffer>().Arg<Buffer>().Arg<Buffer>()   // query, key, value, low
      .Arg<Buffer>().Arg<Buffer>().Arg<Buffer>().Arg<Buffer>()   // high, query_ids, key_ids, valid
      .Arg<Buffer>().Arg<Buffer>().Arg<Buffer>().Arg<Buffer>()   // dense, codes, tiles, bias
      .Arg<Buffer>().Arg<Buffer>().Arg<Buffer>().Arg<Buffer>();  // sinks, keys, examples, heads
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(AttentionForward, forward_handler,
                              common().Ret<Buffer>().Ret<Buffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(AttentionBackward, backward_handler,
                              common().Arg<Buffer>().Arg<Buffer>().Arg<Buffer>()
                                  .Ret<Buffer>().Ret<Buffer>().Ret<Buffer>().Ret<Buffer>());
