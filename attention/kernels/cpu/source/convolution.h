// Convolution of feature maps and its two transposes, by products of small blocks.
//
//   y_ijo = sum_uvc k_uvco x_(i s + u - top)(j s + v - left)c,   x being 0 outside
//
// B batch, Y X height and width, C channels; height, width and O of the kernel; rows and columns of
// y. A block is some rows of y with their input rows, padded with zeros, so that the `width` inputs
// of an element of y in a row are contiguous: a product of depth width C for each u. With a stride
// of 1 the rows of a block form one long row, and the results between two rows are discarded.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"
#include "vector.h"

namespace attention {

struct Maps {
  long B, Y, X, C, height, width, O, rows, columns, stride, top, left;

  long depth() const { return width * C; }
  // Positions in a row of a block, and rows of x under `count` rows of y.
  long pitch() const { return (columns - 1) * stride + width; }
  long rows_below(long count) const { return (count - 1) * stride + height; }
  // Rows of y per block: their inputs fit the second cache, and each thread gets some.
  long block() const {
    constexpr long kFloats = 48 * 1024;
    long row = pitch() * (stride * C + round_up(O, kLanes));
    long fit = std::max(1L, kFloats / row);
    return std::min({rows, fit, std::max(1L, B * rows / 8)});
  }
};

// Rows of a block for `count` rows of y; with a stride of 1 one long row.
struct Runs {
  long number, length, input_step, output_step;  // steps in positions
  Runs(const Maps& m, long count) {
    bool joined = m.stride == 1;
    number = joined ? 1 : count;
    length = joined ? (count - 1) * m.pitch() + m.columns : m.columns;
    input_step = m.stride * m.pitch();
    output_step = m.pitch();
  }
};

// Rows first, ..., first + count - 1 of example b, with `left` zeros before and padding after.
inline void pad_rows(const Maps& m, const float* x, long b, long first, long count, float* to) {
  long pitch = m.pitch(), before = std::min(m.left, pitch), some = std::min(m.X, pitch - before);
  some = std::max(some, 0L);
  for (long row = first; row < first + count; ++row, to += pitch * m.C) {
    bool inside = row >= 0 && row < m.Y;
    long kept = inside ? some : 0, start = inside ? before : 0;
    std::fill(to, to + start * m.C, 0.0f);
    if (kept) std::memcpy(to + start * m.C, x + (b * m.Y + row) * m.X * m.C, kept * m.C * sizeof(float));
    std::fill(to + (start + kept) * m.C, to + pitch * m.C, 0.0f);
  }
}

// The kernel as the right factor: panels of kPanel columns, each [height, depth, kPanel]. Column o
// of row (u, v, c) is element u·step[0] + v·step[1] + c·step[2] + o·step[3].
struct Packed {
  std::vector<float> data;
  long panel;
  Packed(xla::ffi::ThreadPool& pool, const float* kernel, long height, long width, long C, long O,
         const long (&step)[4]) {
    panel = height * width * C * kPanel;
    long panels = (O + kPanel - 1) / kPanel;
    data.resize(panels * panel);
    share(pool, panels, [&](long p) {
      float* to = data.data() + p * panel;
      long first = p * kPanel, some = std::min<long>(kPanel, O - first);
      for (long u = 0; u < height; ++u)
        for (long v = 0; v < width; ++v)
          for (long c = 0; c < C; ++c, to += kPanel) {
            const float* from = kernel + u * step[0] + v * step[1] + c * step[2] + first * step[3];
            for (long o = 0; o < some; ++o) to[o] = from[o * step[3]];
          }
    });
  }
  Right rows_from(long row) const { return {data.data() + row * kPanel, kPanel, panel}; }
};

// y of a block of rows.
inline void convolve_block(const Maps& m, const float* x, const Packed& kernel, float* y, long b,
                           long first, long count) {
  static thread_local Buffer padded_buffer, sums_buffer;
  long pitch = m.pitch(), depth = m.depth(), full = round_up(m.O, kLanes);
  long below = m.rows_below(count);
  float* padded = padded_buffer.reserve(below * pitch * m.C);
  pad_rows(m, x, b, first * m.stride - m.top, below, padded);
  Runs runs(m, count);
  float* sums = sums_buffer.reserve(count * pitch * full);
  for (long u = 0; u < m.height; ++u)
    for (long run = 0; run < runs.number; ++run)
      multiply(runs.length, full, depth, padded + (run * runs.input_step + u * pitch) * m.C,
               m.stride * m.C, 1, kernel.rows_from(u * depth),
               sums + run * runs.output_step * full, full, u > 0);
  float* to = y + (b * m.rows + first) * m.columns * m.O;
  for (long row = 0; row < count; ++row)
    for (long column = 0; column < m.columns; ++column, to += m.O)
      std::memcpy(to, sums + (row * pitch + column) * full, m.O * sizeof(float));
}

inline void convolve(xla::ffi::ThreadPool& pool, const Maps& m, const float* x, const Packed& kernel,
                     float* y) {
  long block = m.block(), blocks = (m.rows + block - 1) / block;
  share(pool, m.B * blocks, [&](long item) {
    long first = item % blocks * block;
    convolve_block(m, x, kernel, y, item / blocks, first, std::min(block, m.rows - first));
  });
}

// Rows first, ... of the gradient of x from that of y, for a stride above 1: each element of y
// contributes to its inputs.
inline void scatter_block(const Maps& m, const float* y, const Packed& kernel, float* x, long b,
                          long first, long count) {
  static thread_local Buffer row_buffer, part_buffer;
  long pitch = m.pitch(), depth = m.depth(), full = round_up(depth, kLanes);
  float* row = row_buffer.reserve(pitch * m.C);
  float* parts = part_buffer.reserve(m.columns * full);
  for (long place = first; place < first + count; ++place) {
    std::fill(row, row + pitch * m.C, 0.0f);
    for (long u = 0; u < m.height; ++u) {
      long from = place + m.top - u;
      if (from < 0 || from % m.stride || from / m.stride >= m.rows) continue;
      const float* some = y + (b * m.rows + from / m.stride) * m.columns * m.O;
      Right right{kernel.data.data() + u * m.O * kPanel, kPanel, kernel.panel};
      multiply(m.columns, full, m.O, some, m.O, 1, right, parts, full, false);
      for (long column = 0; column < m.columns; ++column) {
        float* to = row + column * m.stride * m.C;
        for (long k = 0; k < depth; ++k) to[k] += parts[column * full + k];
      }
    }
    float* to = x + (b * m.Y + place) * m.X * m.C;
    long some = std::clamp(pitch - m.left, 0L, m.X);
    if (some) std::memcpy(to, row + m.left * m.C, some * m.C * sizeof(float));
    std::fill(to + some * m.C, to + m.X * m.C, 0.0f);
  }
}

// ---------------------------------------------------------------- the kernel's gradient

// Blocks of rows are accumulated in `parts` sums, fewer for a large kernel, independently of the
// number of threads. With few parts, rows and columns of the kernel are distributed as well.
struct Cuts {
  long block, blocks, parts, heights, panels, wide;
  explicit Cuts(const Maps& m) {
    constexpr long kFloats = 256 * 1024, kMost = 16, kWide = 4 * kPanel;
    block = m.block(), blocks = m.B * ((m.rows + block - 1) / block);
    long full = round_up(m.O, kLanes);
    parts = std::clamp(kFloats / (m.height * m.depth() * full), 1L, std::min(kMost, blocks));
    bool share_kernel = parts < 8;
    heights = share_kernel ? m.height : 1;
    wide = share_kernel ? std::min(kWide, full) : full;
    panels = (full + wide - 1) / wide;
  }
  long items() const { return parts * heights * panels; }
};

inline void kernel_item(const Maps& m, const Cuts& cuts, const float* x, const float* y, float* sums,
                        long item) {
  static thread_local Buffer padded_buffer, y_buffer;
  long full = round_up(m.O, kLanes), pitch = m.pitch(), depth = m.depth();
  long part = item % cuts.parts, rest = item / cuts.parts;
  long first_column = rest % cuts.panels * cuts.wide;
  long columns = std::min(cuts.wide, full - first_column), given = std::min(columns, m.O - first_column);
  long height = rest / cuts.panels;
  long first_u = cuts.heights > 1 ? height : 0, last_u = cuts.heights > 1 ? height + 1 : m.height;
  sums += part * m.height * depth * full + first_column;
  for (long u = first_u; u < last_u; ++u)
    for (long k = 0; k < depth; ++k) {
      float* to = sums + (u * depth + k) * full;
      std::fill(to, to + columns, 0.0f);
    }
  long in_example = cuts.blocks / m.B;
  for (long number = part * cuts.blocks / cuts.parts; number < (part + 1) * cuts.blocks / cuts.parts;
       ++number) {
    long b = number / in_example, first = number % in_example * cuts.block;
    long count = std::min(cuts.block, m.rows - first), below = (count - 1) * m.stride + last_u - first_u;
    float* padded = padded_buffer.reserve(below * pitch * m.C);
    pad_rows(m, x, b, first * m.stride - m.top + first_u, below, padded);
    Runs runs(m, count);
    float* slopes = y_buffer.reserve(count * pitch * columns);
    std::fill(slopes, slopes + count * pitch * columns, 0.0f);
    const float* from = y + (b * m.rows + first) * m.columns * m.O + first_column;
    for (long row = 0; row < count; ++row)
      for (long column = 0; column < m.columns; ++column, from += m.O)
        std::memcpy(slopes + (row * pitch + column) * columns, from, given * sizeof(float));
    Right right{slopes, columns, kPanel};
    for (long u = first_u; u < last_u; ++u)
      for (long run = 0; run < runs.number; ++run) {
        right.data = slopes + run * runs.output_step * columns;
        multiply(depth, columns, runs.length,
                 padded + (run * runs.input_step + (u - first_u) * pitch) * m.C, 1, m.stride * m.C,
                 right, sums + u * depth * full, full, true);
      }
  }
}

inline void kernel_gradient(xla::ffi::ThreadPool& pool, const Maps& m, const float* x, const float* y,
                            float* kernel) {
  static thread_local Buffer sums_buffer;
  Cuts cuts(m);
  long full = round_up(m.O, kLanes), rows = m.height * m.depth();
  float* sums = sums_buffer.reserve(cuts.parts * rows * full);
  share(pool, cuts.items(), [&](long item) { kernel_item(m, cuts, x, y, sums, item); });
  for (long row = 0; row < rows; ++row) {
    float* to = kernel + row * m.O;
    const float* from = sums + row * full;
    for (long o = 0; o < m.O; ++o) to[o] = from[o];
    for (long part = 1; part < cuts.parts; ++part) {
      from += rows * full;
      for (long o = 0; o < m.O; ++o) to[o] += from[o];
    }
  }
}

}  // namespace attention
