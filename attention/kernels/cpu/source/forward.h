// Attention by blocks with an online softmax (Milakov & Gimelshein 2018; Dao et al. 2022).
#pragma once

#include "problem.h"

namespace attention {

struct ForwardOutputs {
  void* output;           // [B, T, N, V], the dtype of the query
  float* log_sum;         // [B, N, T], log-sum-exp; 0 for a query that may attend to nothing
};

// Queries per thread at a time: their accumulators fit the second cache.
constexpr long kChunk = 1024;

inline long chunk_of(const Problem& p) {
  return std::max(kQueries, kChunk / p.group() / kQueries * kQueries);
}

// Turns columns [v.begin, v.end) of scores into exp(l - running maximum), with dropout, and
// rescales the accumulators to the new maximum.
inline void softmax_rows(const Problem& p, const Sight& sight, const View& v, long b, long n,
                         long first, long rows, long key_block, float* scores, float* highest_so_far,
                         float* total, float* sums) {
  const float never = -__builtin_inff();
  long count = v.end - v.begin, width = p.value_width();
  float factors[kKeys];
  for (long i = 0; i < rows; ++i) {
    float* row = scores + i * kRow;
    if (p.bias) add_bias(p, row, v, b, n, first + i, key_block);
    if (p.cap)
      for (long j = 0; j < count; j += kLanes) store(row + j, capped(load(row + j), p.cap).value);
    if (!v.whole) sight.hide(row, v, first + i, key_block, n);
    Vector most = splat(never);
    for (long j = 0; j < count; j += kLanes) most = larger(most, load(row + j));
    float before = highest_so_far[i], now = std::max(before, highest(most));
    if (now == never) {
      // A maximum ignores NaN, which must be propagated.
      for (long j = 0; j < count; ++j) row[j] = row[j] != row[j] ? row[j] : 0;
      continue;
    }
    Vector sum_here{};
    for (long j = 0; j < count; j += kLanes) {
      Vector e = exponential(load(row + j) - now);
      sum_here += e;
      store(row + j, e);
    }
    if (p.threshold) {
      draw(p, b, n, first + i, key_block * kKeys + v.begin, count, factors);
      for (long j = 0; j < count; j += kLanes) store(row + j, load(row + j) * load(factors + j));
    }
    float shrink = before == now ? 1.0f : std::exp(before - now);
    total[i] = total[i] * shrink + sum(sum_here);
    highest_so_far[i] = now;
    if (shrink != 1.0f)
      for (long j = 0; j < width; j += kLanes) store(sums + i * width + j, load(sums + i * width + j) * shrink);
  }
}

// Queries [from, to) of the heads that share key/value head k.
inline void forward_chunk(const Problem& p, const ForwardOutputs& out, const Sight& sight, long b,
                          long k, long from, long to) {
  static thread_local Buffer query_buffer, sums_buffer, state_buffer, key_buffer, value_buffer,
      score_buffer;
  long G = p.group(), rows = to - from, Hw = p.head_width(), Vw = p.value_width();
  float* queries = query_buffer.reserve(G * rows * Hw);
  float* sums = sums_buffer.reserve(G * rows * Vw);
  float* highest_so_far = state_buffer.reserve(2 * G * rows);
  float* total = highest_so_far + G * rows;
  float* keys = key_buffer.reserve(round_up(kKeys, kPanel) * p.H);
  float* values = value_buffer.reserve(kKeys * Vw);
  float* scores = score_buffer.reserve(kQueries * kRow);
  std::fill(sums, sums + G * rows * Vw, 0.0f);
  for (long g = 0; g < G; ++g) {
    long n = k * G + g;
    query_rows(p, b, n).pack_rows(queries + g * rows * Hw, Hw, from, rows, p.H, p.scale);
    float start = p.sinks ? p.sinks.at(b, 0)[n] : -__builtin_inff();
    std::fill_n(highest_so_far + g * rows, rows, start);
    // A sink of minus infinity takes no weight.
    std::fill_n(total + g * rows, rows, start > -__builtin_inff() ? 1.0f : 0.0f);
  }
  for (long key_block = 0; key_block < p.key_blocks(); ++key_block) {
    bool packed = false;
    long first_key = key_block * kKeys, some_keys = std::min(kKeys, p.S - first_key);
    for (long t = from; t < to; t += kQueries) {
      long some = std::min(kQueries, to - t), block = t / kQueries;
      for (long g = 0; g < G; ++g) {
        long n = k * G + g, at = g * rows + t - from;
        View v = sight.view(block, key_block, n);
        if (!v.seen) continue;
        if (!packed) {
          key_rows(p, b, k).pack_panels(keys, first_key, some_keys, p.H);
          value_rows(p, b, k).pack_rows(values, Vw, first_key, some_keys, p.V);
          packed = true;
        }
        long count = v.end - v.begin;
        Right columns{keys + v.begin / kPanel * kPanel * p.H, kPanel, kPanel * p.H};
        multiply(some, count, p.H, queries + at * Hw, Hw, 1, columns, scores, kRow, false);
        softmax_rows(p, sight, v, b, n, t, some, key_block, scores, highest_so_far + at, total + at,
                     sums + at * Vw);
        Right rows_of_values{values + v.begin * Vw, Vw, kPanel};
        long real = std::min(count, some_keys - v.begin);
        multiply(some, Vw, real, scores, kRow, 1, rows_of_values, sums + at * Vw, Vw, true);
      }
    }
  }
  for (long g = 0; g < G; ++g) {
    long n = k * G + g;
    for (long i = 0; i < rows; ++i) {
      long at = g * rows + i;
      float sum_of_row = total[at];
      bool empty = sum_of_row == 0;
      unpack_rows(out.output, p.half, p.T, p.N, p.V, b, n, from + i, 1, sums + at * Vw, Vw,
                  empty ? 1.0f : 1.0f / sum_of_row);
      out.log_sum[(b * p.N + n) * p.T + from + i] =
          empty ? 0.0f : highest_so_far[at] + std::log(sum_of_row);
    }
  }
}

}  // namespace attention
