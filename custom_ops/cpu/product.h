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

// How many factors of each column are packed at once: few where rows lie in memory, which is then
// read nearly in its order, else a cache line.
constexpr int64_t kRowsPacked = 4, kColumnPacked = 16;

// How many elements b [inner, columns] takes when packed.
template <typename T>
int64_t PackedSize(int64_t inner, int64_t columns) {
  return (columns + kPanel<T> - 1) / kPanel<T> * kPanel<T> * inner;
}

// Packs kPanel numbers of a row; of pairs with those of the next row, if there is one.
template <typename S, typename T>
inline void PackRow(const S* from, int64_t, bool, T* to) {
  for (int64_t column = 0; column < kPanel<T>; ++column) to[column] = Value(from[column]);
}
inline void PackRow(const Bfloat16Bits* from, int64_t next, bool whole, Pair* to) {
  constexpr int64_t kLanes = Vector<Pair>::kLanes;
  for (int64_t column = 0; column < kPanel<Pair>; column += kLanes) {
    Halves rows[2] = {};
    std::memcpy(&rows[0], from + column, sizeof rows[0]);
    if (whole) std::memcpy(&rows[1], from + next + column, sizeof rows[1]);
    const auto pairs = Paired(rows[0], rows[1]);
    std::memcpy(to + column, &pairs, sizeof pairs);
  }
}

// Packs so many numbers of a column, or pairs of them, to the same column of a panel.
template <typename S, typename T>
inline void PackColumn(const S* from, int64_t stride, int64_t count, T* to) {
  for (int64_t k = 0; k < count; ++k) to[k * kPanel<T>] = Value(from[k * stride]);
}
inline void PackColumn(const Bfloat16Bits* from, int64_t stride, int64_t count, Pair* to) {
  for (int64_t k = 0; k < count; k += 2, to += kPanel<Pair>) {
    if (stride == 1 && k + 1 < count) {
      std::memcpy(to, from + k, sizeof *to);  // as they lie there
    } else {
      const uint32_t next = k + 1 < count ? from[(k + 1) * stride].bits : 0;
      to->bits = from[k * stride].bits | next << 16;
    }
  }
}

// Packs b [inner, columns], whose rows and columns are so far apart, as [panels, inner, kPanel];
// what the last panel has too much is 0. Panels are panel_stride apart. Pairs are of two rows; the
// last may lack its second.
template <typename S, typename T>
void Pack(const S* b, int64_t row_stride, int64_t column_stride, int64_t inner, int64_t columns,
          int64_t panel_stride, T* packed) {
  const int64_t whole = column_stride == 1 ? columns / kPanel<T> * kPanel<T> : 0;
  const int64_t at_once = kNumbers<T> * (column_stride == 1 ? kRowsPacked : kColumnPacked);
  for (int64_t first = 0; first < inner; first += at_once) {
    const int64_t count = std::min(at_once, inner - first);
    const S* const from = b + first * row_stride;
    T* to = packed + first / kNumbers<T> * kPanel<T>;
    for (int64_t column = 0; column < columns; column += kPanel<T>, to += panel_stride) {
      if (column < whole) {
        for (int64_t k = 0; k < count; k += kNumbers<T>) {
          PackRow(from + k * row_stride + column, row_stride, k + kNumbers<T> <= count,
                  to + k / kNumbers<T> * kPanel<T>);
        }
        continue;
      }
      const int64_t width = std::min(kPanel<T>, columns - column);
      for (int64_t k = 0; k < count && width < kPanel<T>; k += kNumbers<T>) {
        std::fill_n(to + k / kNumbers<T> * kPanel<T> + width, kPanel<T> - width, T{});
      }
      for (int64_t each = 0; each < width; ++each) {
        PackColumn(from + (column + each) * column_stride, row_stride, count, to + each);
      }
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
