// The gradient of attention, from recomputed probabilities (Dao et al. 2022, algorithm 4).
#pragma once

#include "problem.h"

namespace attention {

struct BackwardArrays {
  const void *output, *cotangent;  // [B, T, N, V], the dtype of the query
  const float* log_sum;            // [B, N, T]
  void *query, *key, *value;       // gradients, shaped like the arrays, never heads first
  Shared<float> bias;              // gradient, shaped like the bias; null if not needed
};

// Partition of the work: examples and heads that share a bias stay with one thread, and key blocks
// are distributed over `splits`.
struct Cut {
  long groups_of_examples, groups_of_heads, splits;
  long items() const { return groups_of_examples * groups_of_heads * splits; }
};

inline Cut cut(const Problem& p, const BackwardArrays& a, long threads) {
  Cut c{a.bias && !a.bias.batch ? 1 : p.B, a.bias && !a.bias.head ? 1 : p.K, 1};
  long groups = c.groups_of_examples * c.groups_of_heads;
  c.splits = std::clamp<long>((threads + groups - 1) / groups, 1, p.key_blocks());
  return c;
}

// Turns rows of scores into probabilities with dropout, and rows of `slopes`, which hold dO·V, into
// the gradient of the logits.
inline void gradient_rows(const Problem& p, const BackwardArrays& a, const Sight& sight,
                          const View& v, long b, long n, long first, long rows, long key_block,
                          const float* log_sum, const float* delta, float* scores, float* slopes) {
  long count = v.end - v.begin, inside = std::min(count, p.S - key_block * kKeys - v.begin);
  float factors[kKeys], by_cap[kKeys];
  for (long i = 0; i < rows; ++i) {
    float *row = scores + i * kRow, *slope = slopes + i * kRow;
    long t = first + i;
    if (p.bias) add_bias(p, row, v, b, n, t, key_block);
    if (p.cap)
      for (long j = 0; j < count; j += kLanes) {
        Capped c = capped(load(row + j), p.cap);
        store(row + j, c.value);
        store(by_cap + j, c.slope);
      }
    if (!v.whole) sight.hide(row, v, t, key_block, n);
    if (p.threshold) draw(p, b, n, t, key_block * kKeys + v.begin, count, factors);
    for (long j = 0; j < count; j += kLanes) {
      Vector probability = exponential(load(row + j) - log_sum[i]), down = load(slope + j);
      if (p.threshold) {
        Vector factor = load(factors + j);
        down *= factor;
        store(row + j, probability * factor);
      } else {
        store(row + j, probability);
      }
      down = probability * (down - delta[i]);
      if (p.cap) down *= load(by_cap + j);
      store(slope + j, down);
    }
    if (a.bias) {
      float* to = a.bias.at(b, n) + t * p.S + key_block * kKeys + v.begin;
      for (long j = 0; j < inside; ++j) to[j] += slope[j];
    }
  }
}

// Gradients of the keys and values of one key/value head, for the key blocks of a split, and their
// contribution to the gradient of the queries, `query_sums` [G, T, head width].
inline void backward_head(const Problem& p, const BackwardArrays& a, const Sight& sight, long b,
                          long k, long split, long splits, float* query_sums) {
  static thread_local Buffer query_buffer, cotangent_buffer, state_buffer, key_buffer, value_buffer,
      score_buffer, sums_buffer;
  long G = p.group(), T = p.T, Hw = p.head_width(), Vw = p.value_width();
  float* queries = query_buffer.reserve(G * T * Hw);
  float* cotangents = cotangent_buffer.reserve(G * T * Vw);
  float* delta = state_buffer.reserve(G * T);
  float* key_panels = key_buffer.reserve(round_up(kKeys, kPanel) * p.H + kKeys * Hw);
  float* keys = key_panels + round_up(kKeys, kPanel) * p.H;
  float* value_panels = value_buffer.reserve(round_up(kKeys, kPanel) * p.V);
  float* scores = score_buffer.reserve(2 * kQueries * kRow);
  float* slopes = scores + kQueries * kRow;
  float* key_sums = sums_buffer.reserve(kKeys * (Hw + Vw));
  float* value_sums = key_sums + kKeys * Hw;
  std::fill(query_sums, query_sums + G * T * Hw, 0.0f);
  for (long g = 0; g < G; ++g) {
    long n = k * G + g;
    float* rows = cotangents + g * T * Vw;
    query_rows(p, b, n).pack_rows(queries + g * T * Hw, Hw, 0, T, p.H, p.scale);
    // The buffer of the query gradient holds the outputs until delta is computed.
    Rows(a.output, p.half, false, T, p.N, p.V, b, n).pack_rows(rows, Vw, 0, T, p.V);
    std::vector<float> wide(Vw);
    Rows cotangent(a.cotangent, p.half, false, T, p.N, p.V, b, n);
    for (long t = 0; t < T; ++t) {
      float* row = rows + t * Vw;
      cotangent.pack_rows(wide.data(), Vw, t, 1, p.V);
      Vector total{};
      for (long j = 0; j < Vw; j += kLanes) {
        Vector given = load(wide.data() + j);
        total += load(row + j) * given;
        store(row + j, given);
      }
      delta[g * T + t] = sum(total);
    }
  }
  for (long key_block = split; key_block < p.key_blocks(); key_block += splits) {
    long first_key = key_block * kKeys, some_keys = std::min(kKeys, p.S - first_key);
    bool packed = false;
    std::fill(key_sums, key_sums + kKeys * (Hw + Vw), 0.0f);
    for (long block = 0; block < p.query_blocks(); ++block) {
      long t = block * kQueries, some = std::min(kQueries, T - t);
      for (long g = 0; g < G; ++g) {
        long n = k * G + g, at = g * T + t;
        View v = sight.view(block, key_block, n);
        if (!v.seen) continue;
        if (!packed) {
          key_rows(p, b, k).pack_panels(key_panels, first_key, some_keys, p.H);
          key_rows(p, b, k).pack_rows(keys, Hw, first_key, some_keys, p.H);
          value_rows(p, b, k).pack_panels(value_panels, first_key, some_keys, p.V);
          packed = true;
        }
        long count = v.end - v.begin, real = std::min(count, some_keys - v.begin);
        const float *query = queries + at * Hw, *cotangent = cotangents + at * Vw;
        long panel = v.begin / kPanel;
        multiply(some, count, p.H, query, Hw, 1,
                 {key_panels + panel * kPanel * p.H, kPanel, kPanel * p.H}, scores, kRow, false);
        multiply(some, count, p.V, cotangent, Vw, 1,
                 {value_panels + panel * kPanel * p.V, kPanel, kPanel * p.V}, slopes, kRow, false);
        gradient_rows(p, a, sight, v, b, n, t, some, key_block, a.log_sum + (b * p.N + n) * T + t,
                      delta + at, scores, slopes);
        multiply(real, Vw, some, scores, 1, kRow, {cotangent, Vw, kPanel},
                 value_sums + v.begin * Vw, Vw, true);
        multiply(real, Hw, some, slopes, 1, kRow, {query, Hw, kPanel}, key_sums + v.begin * Hw, Hw,
                 true);
        multiply(some, Hw, real, slopes, kRow, 1, {keys + v.begin * Hw, Hw, kPanel},
                 query_sums + at * Hw, Hw, true);
      }
    }
    unpack_rows(a.key, p.half, p.S, p.K, p.H, b, k, first_key, some_keys, key_sums, Hw);
    unpack_rows(a.value, p.half, p.S, p.K, p.V, b, k, first_key, some_keys, value_sums, Vw);
  }
}

// Zeros the gradient of the bias in the columns of a split.
inline void clear_bias(const Problem& p, const BackwardArrays& a, long b, long n, long split,
                       long splits) {
  for (long t = 0; t < p.T; ++t)
    for (long block = split; block < p.key_blocks(); block += splits) {
      float* row = a.bias.at(b, n) + t * p.S;
      std::fill(row + block * kKeys, row + std::min(p.S, (block + 1) * kKeys), 0.0f);
    }
}

// One item of the partition. `partial` holds the query gradients of each split, [splits, B, N, T,
// head width]; null with one split.
inline void backward_item(const Problem& p, const BackwardArrays& a,
                          const std::vector<Sight>& sights, const Cut& c, long item,
                          float* partial) {
  static thread_local Buffer own_sums;
  long split = item % c.splits, group = item / c.splits;
  long head_group = group % c.groups_of_heads, example_group = group / c.groups_of_heads;
  long examples = p.B / c.groups_of_examples, heads = p.K / c.groups_of_heads;
  long G = p.group(), Hw = p.head_width(), block = G * p.T * Hw;
  for (long b = example_group * examples; b < (example_group + 1) * examples; ++b)
    for (long k = head_group * heads; k < (head_group + 1) * heads; ++k) {
      bool first_of_bias = (a.bias.batch || b == 0);
      if (a.bias && first_of_bias)
        for (long n = k * G; n < (k + 1) * G; ++n)
          if (a.bias.head || n == 0) clear_bias(p, a, b, n, split, c.splits);
      float* sums = partial ? partial + ((split * p.B + b) * p.K + k) * block : own_sums.reserve(block);
      backward_head(p, a, sights[sights.size() == 1 ? 0 : b], b, k, split, c.splits, sums);
      if (!partial)
        for (long g = 0; g < G; ++g)
          unpack_rows(a.query, p.half, p.T, p.N, p.H, b, k * G + g, 0, p.T, sums + g * p.T * Hw, Hw,
                      p.scale);
    }
}

// Sums the query gradients of the splits for example b and key/value head k.
inline void join_splits(const Problem& p, const BackwardArrays& a, long splits, long b, long k,
                        float* partial) {
  long G = p.group(), Hw = p.head_width(), block = G * p.T * Hw;
  float* sums = partial + (b * p.K + k) * block;
  for (long split = 1; split < splits; ++split) {
    const float* more = sums + split * p.B * p.K * block;
    for (long i = 0; i < block; i += kLanes) store(sums + i, load(sums + i) + load(more + i));
  }
  for (long g = 0; g < G; ++g)
    unpack_rows(a.query, p.half, p.T, p.N, p.H, b, k * G + g, 0, p.T, sums + g * p.T * Hw, Hw,
                p.scale);
}

}  // namespace attention
