// Decoding, few queries and many keys: each key is read once from the cache, without packing.
#pragma once

#include "forward.h"

namespace attention {

// Results of one part of the keys: row maximum, row sum [rows], accumulator [rows, value width].
struct Part {
  float *highest_so_far, *total, *sums;
};

template <typename T>
void decode_keys(const Problem& p, const Sight& sight, long b, long k, long from_block, long to_block,
                 const float* queries, Part part) {
  static thread_local Buffer score_buffer;
  long G = p.group(), rows = G * p.T, Hw = p.head_width(), Vw = p.value_width();
  float* scores = score_buffer.reserve(rows * kRow);
  const T* keys = static_cast<const T*>(p.key) + (b * p.K + k) * p.S * p.H;
  const T* values = static_cast<const T*>(p.value) + (b * p.K + k) * p.S * p.V;
  long whole_h = p.H / kLanes * kLanes, whole_v = p.V / kLanes * kLanes;
  for (long block = from_block; block < to_block; ++block) {
    for (long g = 0; g < G; ++g) {
      long n = k * G + g;
      View v = sight.view(0, block, n);
      if (!v.seen) continue;
      long first = block * kKeys + v.begin, count = v.end - v.begin;
      long real = std::min(count, p.S - first);
      for (long t = 0; t < p.T; ++t) {
        const float* query = queries + (g * p.T + t) * Hw;
        float* row = scores + (g * p.T + t) * kRow;
        long s = 0;
        for (; s + 4 <= real && whole_h == p.H; s += 4) {
          const T* key = keys + (first + s) * p.H;
          Vector totals[4]{};
          for (long h = 0; h < p.H; h += kLanes) {
            Vector given = load(query + h);
#pragma GCC unroll 4
            for (long i = 0; i < 4; ++i) totals[i] += given * load(key + i * p.H + h);
          }
          sums(totals[0], totals[1], totals[2], totals[3], row + s);
        }
        for (; s < real; ++s) {
          const T* key = keys + (first + s) * p.H;
          Vector total{};
          for (long h = 0; h < whole_h; h += kLanes) total += load(query + h) * load(key + h);
          float rest = 0;
          for (long h = whole_h; h < p.H; ++h) rest += query[h] * widen(key[h]);
          row[s] = sum(total) + rest;
        }
        for (long s = real; s < count; ++s) row[s] = 0;
      }
      long at = g * p.T;
      softmax_rows(p, sight, v, b, n, 0, p.T, block, scores + at * kRow, part.highest_so_far + at,
                   part.total + at, part.sums + at * Vw);
      for (long t = 0; t < p.T; ++t) {
        float* sums = part.sums + (at + t) * Vw;
        const float* row = scores + (at + t) * kRow;
        const T* value = values + first * p.V;
        long s = 0;
        for (; s + 4 <= real; s += 4, value += 4 * p.V) {
          for (long j = 0; j < whole_v; j += kLanes)
            store(sums + j, load(sums + j) + load(value + j) * row[s] +
                                load(value + p.V + j) * row[s + 1] +
                                load(value + 2 * p.V + j) * row[s + 2] +
                                load(value + 3 * p.V + j) * row[s + 3]);
          for (long j = whole_v; j < p.V; ++j)
            for (long i = 0; i < 4; ++i) sums[j] += widen(value[i * p.V + j]) * row[s + i];
        }
        for (; s < real; ++s, value += p.V)
          for (long j = 0; j < p.V; ++j) sums[j] += widen(value[j]) * row[s];
      }
    }
  }
}

// Number of parts of the keys of a head, so that every thread has work.
inline long decode_splits(const Problem& p, long threads) {
  long heads = std::max<long>(1, p.B * p.K);
  return std::clamp<long>((2 * threads + heads - 1) / heads, 1, std::max<long>(1, p.key_blocks()));
}

inline long part_size(const Problem& p) { return p.group() * p.T * (p.value_width() + 2); }

inline Part part_at(const Problem& p, float* data) {
  long rows = p.group() * p.T;
  return {data + rows * p.value_width(), data + rows * (p.value_width() + 1), data};
}

inline void decode_part(const Problem& p, const Sight& sight, long b, long k, long split,
                        long splits, float* data) {
  static thread_local Buffer query_buffer;
  long G = p.group(), rows = G * p.T, Hw = p.head_width();
  float* queries = query_buffer.reserve(rows * Hw);
  Part part = part_at(p, data);
  std::fill(part.sums, part.sums + rows * p.value_width(), 0.0f);
  for (long g = 0; g < G; ++g) {
    long n = k * G + g;
    query_rows(p, b, n).pack_rows(queries + g * p.T * Hw, Hw, 0, p.T, p.H, p.scale);
    // The sink counts once.
    float start = p.sinks && split == 0 ? p.sinks.at(b, 0)[n] : -__builtin_inff();
    std::fill_n(part.highest_so_far + g * p.T, p.T, start);
    // A sink of minus infinity takes no weight.
    std::fill_n(part.total + g * p.T, p.T, start > -__builtin_inff() ? 1.0f : 0.0f);
  }
  long blocks = p.key_blocks(), from = blocks * split / splits, to = blocks * (split + 1) / splits;
  if (p.half)
    decode_keys<uint16_t>(p, sight, b, k, from, to, queries, part);
  else
    decode_keys<float>(p, sight, b, k, from, to, queries, part);
}

// Merges the parts of one head, `parts` [splits, part_size].
inline void decode_join(const Problem& p, const ForwardOutputs& out, long b, long k, long splits,
                        float* parts) {
  long G = p.group(), Vw = p.value_width();
  std::vector<float> sums(Vw);
  for (long g = 0; g < G; ++g)
    for (long t = 0; t < p.T; ++t) {
      long n = k * G + g, at = g * p.T + t;
      float most = -__builtin_inff(), total = 0;
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (long split = 0; split < splits; ++split)
        most = std::max(most, part_at(p, parts + split * part_size(p)).highest_so_far[at]);
      for (long split = 0; split < splits; ++split) {
        Part part = part_at(p, parts + split * part_size(p));
        float own = part.highest_so_far[at];
        float shrink = own == most ? 1.0f : std::exp(own - most);
        total += part.total[at] * shrink;
        for (long j = 0; j < Vw; ++j) sums[j] += part.sums[at * Vw + j] * shrink;
      }
      bool empty = total == 0;
      unpack_rows(out.output, p.half, p.T, p.N, p.V, b, n, t, 1, sums.data(), Vw,
                  empty ? 1.0f : 1.0f / total);
      out.log_sum[(b * p.N + n) * p.T + t] = empty ? 0.0f : most + std::log(total);
    }
}

}  // namespace attention
