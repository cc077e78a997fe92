// Vectors of native width, the functions of softmax, and a matrix product of small blocks.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace attention {

// Lanes of a vector, and rows and vectors of the block of a product held in registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 6, kTileVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 6, kTileVectors = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTileRows = 6, kTileVectors = 4;
#else
constexpr int kLanes = 4, kTileRows = 6, kTileVectors = 2;
#endif
constexpr int kPanel = kLanes * kTileVectors;

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Loose __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));
typedef uint16_t LooseHalves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

inline long round_up(long n, long multiple) { return (n + multiple - 1) / multiple * multiple; }
inline Vector load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vector x) { *reinterpret_cast<Loose*>(p) = x; }
// x - 0 is x; x + 0 is not, for -0, and would be computed.
inline Vector splat(float x) { return x - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// bfloat16 is the upper half of a float32.
inline Vector load(const uint16_t* p) {
  Halves halves = *reinterpret_cast<const LooseHalves*>(p);
  Words words = __builtin_convertvector(halves, Words) << 16;
  return reinterpret_cast<Vector>(words);
}
inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
  uint32_t word = static_cast<uint32_t>(x) << 16;
  float result;
  std::memcpy(&result, &word, 4);
  return result;
}
inline void narrow(float x, float* to) { *to = x; }
inline void narrow(float x, uint16_t* to) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  if ((word & 0x7fffffff) > 0x7f800000) {
    *to = static_cast<uint16_t>((word >> 16) | 0x40);  // NaN stays NaN
  } else {
    *to = static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);  // to nearest even
  }
}

// Lane i of the result is lane i ^ Distance of x.
template <int Distance>
inline Vector exchanged(Vector x) {
  Integers lanes{};
  for (int i = 0; i < kLanes; ++i) lanes[i] = i ^ Distance;
  return __builtin_shuffle(x, lanes);
}
template <int Distance = kLanes / 2>
inline float sum(Vector x) {
  x += exchanged<Distance>(x);
  if constexpr (Distance > 1) return sum<Distance / 2>(x);
  return x[0];
}
// The sums of four vectors, with half the shuffles of separate sums.
inline void sums(Vector a, Vector b, Vector c, Vector d, float* to) {
  constexpr int half = kLanes / 2, quarter = kLanes / 4;
  Integers lower{}, upper{}, first{}, second{};
  for (int i = 0; i < kLanes; ++i) {
    // [a's, b's] halves; then of [a's, b's] and [c's, d's] a quarter each.
    lower[i] = i < half ? i : kLanes + i - half;
    upper[i] = lower[i] + half;
    int group = i / quarter, from = group / 2 * kLanes + group % 2 * half;
    first[i] = from + i % quarter;
    second[i] = first[i] + quarter;
  }
  Vector ab = __builtin_shuffle(a, b, lower) + __builtin_shuffle(a, b, upper);
  Vector cd = __builtin_shuffle(c, d, lower) + __builtin_shuffle(c, d, upper);
  Vector x = __builtin_shuffle(ab, cd, first) + __builtin_shuffle(ab, cd, second);
  if constexpr (quarter >= 4) x += exchanged<2>(x);
  if constexpr (quarter >= 2) x += exchanged<1>(x);
  for (int i = 0; i < 4; ++i) to[i] = x[i * quarter];
}
// Transposes kLanes vectors in place: swaps the off-diagonal blocks of size `Distance`, then those of
// half the size within each block.
template <int Distance = kLanes / 2>
inline void transpose(Vector* rows) {
  Integers upper{}, lower{};
  for (int i = 0; i < kLanes; ++i) {
    upper[i] = i & Distance ? kLanes + (i ^ Distance) : i;
    lower[i] = i & Distance ? kLanes + i : i ^ Distance;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & Distance) continue;
    Vector a = rows[i], b = rows[i + Distance];
    rows[i] = __builtin_shuffle(a, b, upper);
    rows[i + Distance] = __builtin_shuffle(a, b, lower);
  }
  if constexpr (Distance > 1) transpose<Distance / 2>(rows);
}
template <int Distance = kLanes / 2>
inline float highest(Vector x) {
  x = larger(x, exchanged<Distance>(x));
  if constexpr (Distance > 1) return highest<Distance / 2>(x);
  return x[0];
}

// exp to about one unit in the last place; 0 below -87.3, where float32 has no normal numbers.
inline Vector exponential(Vector x) {
  const Vector rounder = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  Vector shifted = x * 1.44269504088896341f + rounder;
  Vector n = shifted - rounder;
  Vector r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vector p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Integers power = (reinterpret_cast<Integers>(shifted) << 23) + (127 << 23);
  Vector result = p * reinterpret_cast<Vector>(power);
  // Above 88 the way above would overflow.
  result = x > 88.0f ? splat(__builtin_inff()) : result;
  return x < -87.3f ? Vector{} : result;
}

// c tanh(x / c) and its derivative with respect to x.
struct Capped {
  Vector value, slope;
};
inline Capped capped(Vector x, float cap) {
  Vector y = x * (1.0f / cap);
  Vector size = y < 0 ? -y : y;
  // tanh |y| = (1 - e) / (1 + e), e = exp(-2 |y|); near 0 by its series, where 1 - e cancels.
  Vector e = exponential(-2.0f * size);
  Vector tanh = (1.0f - e) / (1.0f + e);
  Vector square = y * y;
  Vector series =
      size * (1.0f + square * (-1.0f / 3 + square * (2.0f / 15 + square * (-17.0f / 315))));
  tanh = size < 0.15f ? series : tanh;
  return {(y < 0 ? -tanh : tanh) * cap, 1.0f - tanh * tanh};
}

// The right factor of a product: `row` floats from one row to the next, and `panel` floats from the
// first kPanel columns to the next ones.
struct Right {
  const float* data;
  long row, panel;
};

template <int R, int V>
inline void tile(long depth, const float* a, long a_row, long a_column, const float* b, long b_row,
                 float* c, long c_row, bool add) {
  Vector sums[R][V];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) sums[i][j] = add ? load(c + i * c_row + j * kLanes) : Vector{};
  for (long k = 0; k < depth; ++k) {
    Vector right[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) right[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      Vector left = splat(a[i * a_row]);
#pragma GCC unroll 16
      for (int j = 0; j < V; ++j) sums[i][j] += left * right[j];
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) store(c + i * c_row + j * kLanes, sums[i][j]);
}

// All rows of V vectors: as many at once as fit the registers, enough to hide the latency of sums.
template <int V>
void columns(long rows, long depth, const float* a, long a_row, long a_column, const float* b,
             long b_row, float* c, long c_row, bool add) {
  long i = 0;
  auto take = [&](auto number) {
    constexpr int R = decltype(number)::value;
    for (; i + R <= rows; i += R)
      tile<R, V>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
  };
  take(std::integral_constant<int, V == 1 ? 2 * kTileRows : kTileRows>());
  take(std::integral_constant<int, 4>());
  take(std::integral_constant<int, 2>());
  take(std::integral_constant<int, 1>());
}

// c [rows, width] = a [rows, depth] · b [depth, width], or added to c. The width is a multiple of
// kLanes; a has any strides.
inline void multiply(long rows, long width, long depth, const float* a, long a_row, long a_column,
                     Right b, float* c, long c_row, bool add) {
  // As much of a panel as fits the first cache.
  constexpr long kDepth = 128;
  for (long from = 0; from < depth; from += kDepth) {
    long some = depth - from < kDepth ? depth - from : kDepth;
    const float* left = a + from * a_column;
    for (long j = 0; j < width; j += kPanel) {
      const float* right = b.data + j / kPanel * b.panel + from * b.row;
      long vectors = (width - j) / kLanes;
      float* to = c + j;
      if (vectors >= kTileVectors)
        columns<kTileVectors>(rows, some, left, a_row, a_column, right, b.row, to, c_row, add);
      else if (vectors == 1)
        columns<1>(rows, some, left, a_row, a_column, right, b.row, to, c_row, add);
      else if (vectors == 2)
        columns<2>(rows, some, left, a_row, a_column, right, b.row, to, c_row, add);
      else
        columns<3>(rows, some, left, a_row, a_column, right, b.row, to, c_row, add);
    }
    add = true;
  }
}

}  // namespace attention
