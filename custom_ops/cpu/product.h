// Products of small matrices in registers.
// For the convolution's products.
//
// b is packed once into panels, so that the innermost loop reads memory in order and a block of
// the result never leaves the registers. Factors are of type A: numbers of the sums' type, or pairs
// of bfloat16 that follow one another in the inner dimension, which then counts pairs.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_PRODUCT_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "custom_ops/cpu/rows.h"

namespace tf_deform {
namespace {

template <typename T>
constexpr int64_t kPanel = 2 * Vector<T>::kLanes;            // columns of a panel, and of a block
#ifdef __aarch64__
constexpr int64_t kBlockRows = 8;  // what 32 registers hold beside as many elements of a
#else
constexpr int64_t kBlockRows = kVectorBytes == 64 ? 12 : 6;  // what 32, or 16, registers hold
#endif

constexpr int64_t kRowsPacked = 4;  // at once: they are read nearly in memory's order

// How many elements b [inner, columns] takes when packed.
template <typename T>
int64_t PackedSize(int64_t inner, int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T> * kPanel<T> * inner;
}

// Packs b [inner, columns], whose rows and columns are so far apart, as [panels, inner, kPanel];
// what the last panel has too much is 0. Panels are panel_stride apart.
template <typename S, typename T>
void Pack(const S* b, int64_t row_stride, int64_t column_stride, int64_t inner, int64_t columns,
          int64_t panel_stride, T* packed) {
  int64_t begin = 0;
  if constexpr (std::is_same_v<S, T>) {
    const int64_t whole = column_stride == 1 ? columns / kPanel<T> * kPanel<T> : 0;
    for (int64_t first = 0; first < inner && whole > 0; first += kRowsPacked) {
      const int64_t last = std::min(first + kRowsPacked, inner);
      for (int64_t column = 0; column < whole; column += kPanel<T>) {
        T* to = packed + column / kPanel<T> * panel_stride + first * kPanel<T>;
        for (int64_t k = first; k < last; ++k, to += kPanel<T>) {
          std::memcpy(to, b + k * row_stride + column, kPanel<T> * sizeof(T));
        }
      }
    }
    begin = whole;
    packed += whole / kPanel<T> * panel_stride;
  }
  for (; begin < columns; begin += kPanel<T>, packed += panel_stride) {
    const int64_t width = std::min(kPanel<T>, columns - begin);
    T* to = packed;
    for (int64_t k = 0; k < inner; ++k, to += kPanel<T>) {
      const S* from = b + k * row_stride + begin * column_stride;
      for (int64_t column = 0; column < width; ++column) {
        to[column] = Value(from[column * column_stride]);
      }
      std::fill(to + width, to + kPanel<T>, T(0));
    }
  }
}

// The same for pairs of rows of b, of which there are `inner`; the last may lack its second row.
inline void Pack(const Bfloat16Bits* b, int64_t row_stride, int64_t column_stride, int64_t inner,
                 int64_t columns, int64_t panel_stride, Pair* packed) {
  constexpr int64_t kLanes = Vector<Pair>::kLanes;
  for (int64_t begin = 0; begin < columns; begin += kPanel<Pair>, packed += panel_stride) {
    const int64_t width = std::min(kPanel<Pair>, columns - begin);
    Pair* to = packed;
    for (int64_t k = 0; k < inner; k += 2, to += kPanel<Pair>) {
      const Bfloat16Bits* from = b + k * row_stride + begin * column_stride;
      const int64_t next = k + 1 < inner ? row_stride : 0;
      const uint32_t kept = next ? 0xffffffff : 0xffff;
      int64_t column = 0;
      for (; column_stride == 1 && column + kLanes <= width; column += kLanes) {
        Halves rows[2];
        std::memcpy(&rows[0], from + column, sizeof rows[0]);
        std::memcpy(&rows[1], from + next + column, sizeof rows[1]);
        const auto pairs = Paired(rows[0], rows[1]) & kept;
        std::memcpy(to + column, &pairs, sizeof pairs);
      }
      for (; column < width; ++column) {
        const Bfloat16Bits* each = from + column * column_stride;
        to[column].bits = (each[0].bits | uint32_t{each[next].bits} << 16) & kept;
      }
      std::fill(to + width, to + kPanel<Pair>, Pair{});
    }
  }
}

// Adds sums [kRows, kPanel], or writes them, to the first columns of as many rows of out.
template <int kRows, typename T, typename Sums>
inline void StoreBlock(const Sums& sums, int64_t columns, bool add, T* out, int64_t out_stride) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
#pragma GCC unroll 12
  for (int row = 0; row < kRows; ++row, out += out_stride) {
    if (columns == kPanel<T>) {
      Store(out, add ? Load(out) + sums[row][0] : sums[row][0]);
      Store(out + kLanes, add ? Load(out + kLanes) + sums[row][1] : sums[row][1]);
      continue;
    }
    T part[kPanel<T>];
    Store(part, sums[row][0]);
    Store(part + kLanes, sums[row][1]);
    for (int64_t c = 0; c < columns; ++c) out[c] = add ? out[c] + part[c] : part[c];
  }
}

// As many blocks of kRows rows by one panel as fit, then of fewer rows. Not inlined: the innermost
// loop needs all registers.
template <int kRows, bool kTransposed, typename A, typename T>
__attribute__((noinline)) void MultiplyPanel(const A* a, int64_t stride, int64_t rows,
                                             int64_t inner, const A* panel, int64_t columns,
                                             bool add, T* out, int64_t out_stride) {
  using V = typename Vector<T>::Type;
  for (; rows >= kRows; rows -= kRows, out += kRows * out_stride) {
    V sums[kRows][2] = {};
    const A* b = panel;
    const A* from = a;
    for (int64_t k = 0; k < inner; ++k, b += kPanel<T>, from += kTransposed ? stride : 1) {
      const auto left = Load(b);
      const auto right = Load(b + Vector<A>::kLanes);
#pragma GCC unroll 12
      for (int row = 0; row < kRows; ++row) {
        const auto x = LoadOne(from + (kTransposed ? row : row * stride));
        sums[row][0] = MulAdd(x, left, sums[row][0]);
        sums[row][1] = MulAdd(x, right, sums[row][1]);
      }
    }
    StoreBlock<kRows>(sums, columns, add, out, out_stride);
    a += kTransposed ? kRows : kRows * stride;
  }
  if constexpr (kRows > 1) {
    constexpr int kFewer = kRows > 8 ? 8 : kRows > 4 ? 4 : kRows / 2;
    if (rows > 0) {
      MultiplyPanel<kFewer, kTransposed>(a, stride, rows, inner, panel, columns, add, out,
                                         out_stride);
    }
  }
}

// out [rows, columns] = a [rows, inner] * b, or is added to. Rows of a are `stride` apart; with
// kTransposed a is [inner, rows] in memory. b: packed panels, panel_stride apart. Every element of
// out is one sum in the order of inner, whatever the sizes.
template <bool kTransposed, typename A, typename T>
void Multiply(const A* a, int64_t stride, int64_t rows, int64_t inner, const A* packed,
              int64_t panel_stride, int64_t columns, bool add, T* out, int64_t out_stride) {
  for (int64_t begin = 0; begin < columns; begin += kPanel<T>, packed += panel_stride) {
    MultiplyPanel<kBlockRows, kTransposed>(a, stride, rows, inner, packed,
                                           std::min(kPanel<T>, columns - begin), add, out + begin,
                                           out_stride);
  }
}

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_PRODUCT_H_
