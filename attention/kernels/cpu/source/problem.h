// Arguments of a kernel: arrays, options and the mask.
//
// B batch, T queries, S keys, N query heads, K key/value heads, H head size, V value head size.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "threads.h"
#include "vector.h"

namespace attention {

// Queries and keys of a block: ATTENTION_QUERY_BLOCK and ATTENTION_KEY_BLOCK are set on the
// compiler's command line, so that one file defines them.
constexpr long kQueries = ATTENTION_QUERY_BLOCK, kKeys = ATTENTION_KEY_BLOCK;
// A row of scores: some floats more than a power of two, so that rows do not share cache sets.
constexpr long kRow = kKeys + kLanes;

// An array whose first two dimensions are each full or 1.
template <typename T>
struct Shared {
  T* data = nullptr;
  long batch = 0, head = 0;  // stride in floats, 0 if shared
  T* at(long b, long n) const { return data + b * batch + n * head; }
  explicit operator bool() const { return data != nullptr; }
};

struct Problem {
  long B, T, S, N, K, H, V;
  bool half;          // query, key and value are bfloat16
  bool heads_first;   // key and value are [B, K, S, ...] in memory
  const void *query, *key, *value;
  float scale, cap;   // no cap if 0
  Shared<const int32_t> low, high;             // [B or 1, T]: the keys low <= s < high
  Shared<const int32_t> query_ids, key_ids;    // [B or 1, T], [B or 1, S]: equal ids
  Shared<const uint8_t> valid;                 // [B or 1, S]
  Shared<const uint8_t> dense;                 // [B or 1, N or 1, T, S]
  const int32_t* codes = nullptr;              // [query blocks, key blocks]
  const uint8_t* tiles = nullptr;              // [tiles, kQueries, kKeys]
  Shared<const float> bias;                    // [B or 1, N or 1, T, S]
  Shared<const float> sinks;                   // [B or 1, N]
  Shared<const uint32_t> keys;                 // [B or 1, 2]: of dropout
  const int32_t *examples = nullptr, *heads = nullptr;  // [B], [N]: global positions
  long total_heads = 0;
  uint32_t threshold = 0;                      // of 2^16; bits below it keep a weight
  float kept_scale = 1;

  long group() const { return N / K; }
  long head_width() const { return round_up(H, kLanes); }
  long value_width() const { return round_up(V, kLanes); }
  long query_blocks() const { return (T + kQueries - 1) / kQueries; }
  long key_blocks() const { return (S + kKeys - 1) / kKeys; }
};

// ---------------------------------------------------------------- packing

// Rows of an array are far apart in memory, and the hardware does not prefetch the next one: rows are
// prefetched this many rows ahead.
constexpr long kAhead = 8;
// Always inlined: GCC removes calls of a function that only prefetches, as one without effects.
template <typename T>
inline __attribute__((always_inline)) void prefetch(const T* row, long size) {
  for (long j = 0; j < size; j += 64 / sizeof(T)) __builtin_prefetch(row + j);
}

// Converts rows of an array to float32, times a factor, padded with zeros to `width`.
template <typename T>
void pack_rows_of(float* to, long width, const T* from, long stride, long rows, long size,
                  float factor) {
  for (long i = 0; i < rows; ++i, to += width, from += stride) {
    if (i + kAhead < rows) prefetch(from + kAhead * stride, size);
    long j = 0;
    for (; j + kLanes <= size; j += kLanes) store(to + j, load(from + j) * factor);
    for (; j < size; ++j) to[j] = widen(from[j]) * factor;
    for (; j < width; ++j) to[j] = 0;
  }
}

// Transposes rows into panels [size, kPanel] of kPanel columns, padded with zeros.
template <typename T>
void pack_panels_of(float* to, const T* from, long stride, long rows, long size) {
  for (long first = 0; first < rows; first += kPanel, to += size * kPanel) {
    long some = std::min<long>(kPanel, rows - first);
    const T* corner = from + first * stride;
    long s = 0, whole = size / kLanes * kLanes;
    for (; s + kLanes <= some; s += kLanes) {
      for (long i = s + kLanes; i < std::min(s + 2 * kLanes, rows - first); ++i)
        prefetch(corner + i * stride, size);
      for (long h = 0; h < whole; h += kLanes) {
        Vector square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(corner + (s + i) * stride + h);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(to + (h + i) * kPanel + s, square[i]);
      }
    }
    // The other rows, and the features past the last square.
    for (long row = 0; row < some; ++row)
      for (long h = row < s ? whole : 0; h < size; ++h)
        to[h * kPanel + row] = widen(corner[row * stride + h]);
    if (some < kPanel)
      for (long h = 0; h < size; ++h)
        for (long s = some; s < kPanel; ++s) to[h * kPanel + s] = 0;
  }
}

// One head of [B, length, heads, size], or of [B, heads, length, size].
struct Rows {
  const void* data;
  bool half;
  long start, stride;  // elements

  Rows(const void* data, bool half, bool heads_first, long length, long heads, long size, long b,
       long head)
      : data(data), half(half) {
    start = heads_first ? (b * heads + head) * length * size : (b * length * heads + head) * size;
    stride = heads_first ? size : heads * size;
  }
  void pack_rows(float* to, long width, long from, long rows, long size, float factor = 1) const {
    long first = start + from * stride;
    if (half)
      pack_rows_of(to, width, static_cast<const uint16_t*>(data) + first, stride, rows, size, factor);
    else
      pack_rows_of(to, width, static_cast<const float*>(data) + first, stride, rows, size, factor);
  }
  void pack_panels(float* to, long from, long rows, long size) const {
    long first = start + from * stride;
    if (half)
      pack_panels_of(to, static_cast<const uint16_t*>(data) + first, stride, rows, size);
    else
      pack_panels_of(to, static_cast<const float*>(data) + first, stride, rows, size);
  }
};

inline Rows query_rows(const Problem& p, long b, long n) {
  return Rows(p.query, p.half, false, p.T, p.N, p.H, b, n);
}
inline Rows key_rows(const Problem& p, long b, long k) {
  return Rows(p.key, p.half, p.heads_first, p.S, p.K, p.H, b, k);
}
inline Rows value_rows(const Problem& p, long b, long k) {
  return Rows(p.value, p.half, p.heads_first, p.S, p.K, p.V, b, k);
}

// Writes float32 rows [rows, width] times a factor to one head of [B, length, heads, size].
inline void unpack_rows(void* data, bool half, long length, long heads, long size, long b, long head,
                        long first, long rows, const float* from, long width, float factor = 1) {
  long at = ((b * length + first) * heads + head) * size;
  for (long i = 0; i < rows; ++i, at += heads * size, from += width)
    for (long j = 0; j < size; ++j)
      half ? narrow(from[j] * factor, static_cast<uint16_t*>(data) + at + j)
           : narrow(from[j] * factor, static_cast<float*>(data) + at + j);
}

// ---------------------------------------------------------------- masks

// The visible part of a block: columns [begin, end) from the first key of the block.
struct View {
  bool seen = false, whole = false;
  long begin = 0, end = 0;             // multiples of kPanel and of kLanes
  const uint8_t* pattern = nullptr;    // [kQueries, kKeys]
};

// The mask of one example, for all blocks.
class Sight {
 public:
  Sight(const Problem& p, long b) : p_(p), b_(b), rows_(p.query_blocks()) {
    const int32_t* low = p.low ? p.low.at(b, 0) : nullptr;
    const int32_t* high = p.high ? p.high.at(b, 0) : nullptr;
    for (long block = 0; block < p.query_blocks(); ++block) {
      Range& r = rows_[block];
      for (long t = block * kQueries; t < std::min(p.T, (block + 1) * kQueries); ++t) {
        long first = low ? std::max<long>(low[t], 0) : 0;
        long last = high ? std::min<long>(high[t], p.S) : p.S;
        if (first < last) {
          r.low = std::min(r.low, first);
          r.high = std::max(r.high, last);
        }
        r.inner_low = std::max(r.inner_low, first);
        r.inner_high = std::min(r.inner_high, last);
      }
    }
    if (p.valid) marks_ = ends(p.valid.at(b, 0), p.S, kKeys);
    if (p.query_ids) {
      query_ids_ = ends(p.query_ids.at(b, 0), p.T, kQueries);
      key_ids_ = ends(p.key_ids.at(b, 0), p.S, kKeys);
    }
  }

  View view(long query_block, long key_block, long head) const {
    View v;
    const Range& r = rows_[query_block];
    long start = key_block * kKeys, stop = std::min(p_.S, start + kKeys);
    long from = std::max(start, r.low), to = std::min(stop, r.high);
    if (from >= to) return v;
    v.begin = (from - start) / kPanel * kPanel;
    v.end = round_up(to - start, kLanes);
    v.whole = r.inner_low <= start + v.begin && r.inner_high >= start + v.end;
    if (p_.codes) {
      int32_t code = p_.codes[query_block * p_.key_blocks() + key_block];
      if (code == 0) return v;
      if (code > 1) {
        v.pattern = p_.tiles + (code - 2) * kQueries * kKeys;
        v.whole = false;
      }
    }
    if (p_.valid) {
      if (!marks_[key_block].second) return v;
      v.whole = v.whole && marks_[key_block].first;
    }
    if (p_.query_ids) {
      auto q = query_ids_[query_block], k = key_ids_[key_block];
      if (q.second < k.first || k.second < q.first) return v;
      v.whole = v.whole && q.first == q.second && k.first == k.second && q.first == k.first;
    }
    if (p_.dense) {
      if (!any_dense(query_block, start + v.begin, to, head)) return v;
      v.whole = false;
    }
    v.seen = true;
    return v;
  }

  // Sets the scores hidden from query t to minus infinity; `scores` has columns [v.begin, v.end)
  // of a key block.
  void hide(float* scores, const View& v, long t, long key_block, long head) const {
    const float never = -__builtin_inff();
    long first = key_block * kKeys + v.begin, count = v.end - v.begin;
    long inside = std::min(count, p_.S - first);
    long low = p_.low ? p_.low.at(b_, 0)[t] : 0;
    long high = p_.high ? std::min<long>(p_.high.at(b_, 0)[t], p_.S) : p_.S;
    long from = std::clamp<long>(low - first, 0, count), to = std::clamp<long>(high - first, 0, count);
    for (long j = 0; j < std::min(from, count); ++j) scores[j] = never;
    for (long j = to; j < count; ++j) scores[j] = never;
    if (v.pattern) {
      const uint8_t* row = v.pattern + (t % kQueries) * kKeys + v.begin;
      for (long j = 0; j < count; ++j) scores[j] = row[j] ? scores[j] : never;
    }
    if (p_.valid) {
      const uint8_t* row = p_.valid.at(b_, 0) + first;
      for (long j = 0; j < inside; ++j) scores[j] = row[j] ? scores[j] : never;
    }
    if (p_.query_ids) {
      int32_t id = p_.query_ids.at(b_, 0)[t];
      const int32_t* row = p_.key_ids.at(b_, 0) + first;
      for (long j = 0; j < inside; ++j) scores[j] = row[j] == id ? scores[j] : never;
    }
    if (p_.dense) {
      const uint8_t* row = p_.dense.at(b_, head) + t * p_.S + first;
      for (long j = 0; j < inside; ++j) scores[j] = row[j] ? scores[j] : never;
    }
  }

 private:
  struct Range {
    long low = INT64_MAX, high = 0, inner_low = 0, inner_high = INT64_MAX;
  };

  // The smallest and the largest id of each block.
  template <typename T>
  static std::vector<std::pair<T, T>> ends(const T* values, long length, long block) {
    std::vector<std::pair<T, T>> result;
    for (long from = 0; from < length; from += block) {
      auto pair = std::minmax_element(values + from, values + std::min(length, from + block));
      result.emplace_back(*pair.first, *pair.second);
    }
    return result;
  }

  bool any_dense(long query_block, long from, long to, long head) const {
    const uint8_t* all = p_.dense.at(b_, head);
    for (long t = query_block * kQueries; t < std::min(p_.T, (query_block + 1) * kQueries); ++t) {
      uint8_t any = 0;
      for (long s = from; s < to; ++s) any |= all[t * p_.S + s];
      if (any) return true;
    }
    return false;
  }

  const Problem& p_;
  long b_;
  std::vector<Range> rows_;
  std::vector<std::pair<uint8_t, uint8_t>> marks_;
  std::vector<std::pair<int32_t, int32_t>> query_ids_, key_ids_;
};

// ---------------------------------------------------------------- dropout

// Salmon et al. 2011, Threefry-2x32-20: the bits that jax.random draws for counter (high, low).
inline uint32_t threefry(uint32_t k0, uint32_t k1, uint32_t high, uint32_t low) {
  const uint32_t keys[3] = {k0, k1, k0 ^ k1 ^ 0x1BD11BDAu};
  constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  uint32_t x0 = high + keys[0], x1 = low + keys[1];
#pragma GCC unroll 5
  for (uint32_t round = 0; round < 5; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      int by = rotations[round % 2][i];
      x0 += x1;
      x1 = (x1 << by) | (x1 >> (32 - by));
      x1 ^= x0;
    }
    x0 += keys[(round + 1) % 3];
    x1 += keys[(round + 2) % 3] + round + 1;
  }
  return x0 ^ x1;
}

// Factors of dropout, 0 or 1 / p, for `count` weights of query t from key `first` on. The draws are
// those of attention/dropout.py: 16 bits per weight, by its position in [B, N, T, S].
inline void draw(const Problem& p, long b, long n, long t, long first, long count, float* factors) {
  const uint32_t* key = p.keys.at(b, 0);
  uint64_t place = ((static_cast<uint64_t>(p.examples[b]) * p.total_heads + p.heads[n]) * p.T + t) *
                       p.S + first;
  uint64_t word = place / 2;
  uint32_t words[kKeys / 2 + 1];
  long needed = static_cast<long>((place + count - 1) / 2 - word + 1);
  uint32_t low = static_cast<uint32_t>(word), high = static_cast<uint32_t>(word >> 32);
  for (long i = 0; i < needed; ++i) {
    uint32_t lower = low + static_cast<uint32_t>(i);
    words[i] = threefry(key[0], key[1], high + (lower < low), lower);
  }
  uint16_t halves[kKeys + 2];
  std::memcpy(halves, words, needed * 4);
  const uint16_t* drawn = halves + place % 2;
  for (long j = 0; j < count; ++j) factors[j] = drawn[j] < p.threshold ? p.kept_scale : 0.0f;
}

// ---------------------------------------------------------------- scores

// Adds the bias to scores of query t, columns [v.begin, v.end) of a key block.
inline void add_bias(const Problem& p, float* scores, const View& v, long b, long n, long t,
                     long key_block) {
  long first = key_block * kKeys + v.begin, inside = std::min(v.end - v.begin, p.S - first);
  const float* row = p.bias.at(b, n) + t * p.S + first;
  if (t + kAhead < p.T) prefetch(row + kAhead * p.S, inside);
  for (long j = 0; j < inside; ++j) scores[j] += row[j];
}

}  // namespace attention
