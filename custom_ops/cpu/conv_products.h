// The matrix products of a convolution, slice by slice, of a kernel that is packed once a call.
// For the convolution and its gradient.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_CONV_PRODUCTS_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_CONV_PRODUCTS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "custom_ops/cpu/product.h"
#include "custom_ops/cpu/slices.h"
#include "custom_ops/kernels.h"

namespace tf_deform {
namespace {

// The products of a dense or grouped convolution of numbers of type S, with factors of type A: T,
// or pairs where the inner dimensions are even. Columns are [count, taps, channels of the slice],
// of which rows are `stride` apart; the taps are those from `tap` on.
template <typename S, typename A, typename T = Wide<S>>
class Products {
 public:
  using Number = std::conditional_t<std::is_same_v<A, Pair>, S, T>;  // what factors are made of

  Products(const Plan<T>& plan, std::vector<Slice>* slices, bool transposed)
      : plan_(plan), transposed_(transposed) {
    for (Slice& slice : *slices) {
      for (Piece& piece : slice.pieces) {
        piece.packed = size_;
        size_ += SizeOf(piece);
      }
    }
  }

  int64_t packed_size() const { return size_; }

  // Packs the kernel, or its transpose tap by tap: in shares, of which small kernels too have some.
  void PackKernel(const Pool& pool, const std::vector<Slice>& slices, const S* kernel,
                  A* packed) const {
    constexpr int64_t kShare = 64;  // rows of what is packed
    const int64_t filters = plan_.group_filters;
    const int64_t rows = transposed_ ? filters : std::min(plan_.group_channels, slices[0].width());
    const int64_t shares = CeilOfRatio(rows, kShare);
    const int64_t count = slices.size() * plan_.taps * shares;
    ParallelFor(pool, count, 2.0 * size_ / count + 1, [&](int64_t first, int64_t last) {
      for (int64_t each = first; each < last; ++each) {
        const int64_t tap = each / shares % plan_.taps, begin = each % shares * kShare;
        for (const Piece& piece : slices[each / shares / plan_.taps].pieces) {
          const S* from = kernel + plan_.Filters(tap, piece.begin);
          A* to = packed + piece.packed + PanelSize(begin);
          const int64_t width = piece.width();
          if (transposed_) {
            Pack(from + begin, 1, plan_.sizes.filters, std::min(kShare, filters - begin), width,
                 PanelSize(filters), to + tap * PackedSize<A>(Factors(filters), width));
          } else {
            Pack(from + begin * plan_.sizes.filters, plan_.sizes.filters, 1,
                 std::min(kShare, width - begin), filters, plan_.taps * PanelSize(width),
                 to + tap * PanelSize(width));
          }
        }
      }
    });
  }

  // out [count, filters] (+)= columns * kernel.
  void Forward(const Slice& slice, int64_t tap, int64_t taps, const Number* columns, int64_t stride,
               int64_t count, const A* packed, T* out) const {
    ForPieces(slice, tap, taps, [&](const Piece& piece, int64_t first, int64_t at_once) {
      const bool add = first > 0 || piece.begin % plan_.group_channels > 0;
      Multiply<false>(
          FactorsOf(columns + (first - tap) * slice.width() + piece.begin - slice.begin),
          Factors(stride), count, Factors(at_once * piece.width()),
          packed + piece.packed + first * PanelSize(piece.width()),
          plan_.taps * PanelSize(piece.width()), plan_.group_filters, add,
          out + piece.group * plan_.group_filters, plan_.sizes.filters);
    });
  }

  // columns = gradient [count, filters] * transposed kernel.
  void ColumnsGradient(const Slice& slice, int64_t tap, int64_t taps, const A* packed,
                       const Number* gradient, int64_t count, T* columns, int64_t stride) const {
    const int64_t filters = plan_.group_filters;
    for (const Piece& piece : slice.pieces) {
      for (int64_t each = 0; each < taps; ++each) {
        Multiply<false>(
            FactorsOf(gradient + piece.group * filters), Factors(plan_.sizes.filters), count,
            Factors(filters),
            packed + piece.packed + (tap + each) * PackedSize<A>(Factors(filters), piece.width()),
            PanelSize(filters), piece.width(), false,
            columns + each * slice.width() + piece.begin - slice.begin, stride);
      }
    }
  }

  // Packs the gradient [count, filters] for AddKernelGradient.
  int64_t gradient_size() const {
    return plan_.sizes.groups * PackedSize<A>(Factors(kTile), plan_.group_filters);
  }
  void PackGradient(const Slice& slice, const Number* gradient, int64_t count, A* packed) const {
    for (const Piece& piece : slice.pieces) {
      Pack(gradient + piece.group * plan_.group_filters, plan_.sizes.filters, 1, count,
           plan_.group_filters, PanelSize(count),
           packed + piece.group * PackedSize<A>(Factors(kTile), plan_.group_filters));
    }
  }

  // kernel_gradient += transposed columns * gradient. Where factors are pairs the columns are
  // rounded where they lie.
  void AddKernelGradient(const Slice& slice, int64_t tap, int64_t taps, T* columns, int64_t stride,
                         const A* packed_gradient, int64_t count, T* kernel_gradient) const {
    if constexpr (kNumbers<A> == 2) PairRows(columns, stride, count, taps * slice.width());
    ForPieces(slice, tap, taps, [&](const Piece& piece, int64_t first, int64_t at_once) {
      const T* from = columns + (first - tap) * slice.width() + piece.begin - slice.begin;
      Multiply<true>(
          reinterpret_cast<const A*>(from), kNumbers<A> * stride, at_once * piece.width(),
          Factors(count),
          packed_gradient + piece.group * PackedSize<A>(Factors(kTile), plan_.group_filters),
          PanelSize(count), plan_.group_filters, true,
          kernel_gradient + plan_.Filters(first, piece.begin), plan_.sizes.filters);
    });
  }

 private:
  static int64_t Factors(int64_t numbers) { return CeilOfRatio(numbers, kNumbers<A>); }
  static int64_t PanelSize(int64_t inner) { return Factors(inner) * kPanel<A>; }
  static const A* FactorsOf(const Number* numbers) { return reinterpret_cast<const A*>(numbers); }

  // Rounds columns [count, width] to pairs of two rows, which lie where the first row was.
  static void PairRows(T* columns, int64_t stride, int64_t count, int64_t width) {
    constexpr int64_t kLanes = Vector<T>::kLanes;
    for (int64_t row = 0; row < count; row += 2, columns += 2 * stride) {
      for (int64_t c = 0; c < width; c += kLanes) {  // up to a stride, which is whole cache lines
        const Halves first = Rounded(Load(columns + c));
        const auto pairs =
            Paired(first, row + 1 < count ? Rounded(Load(columns + stride + c)) : Halves{});
        std::memcpy(columns + c, &pairs, sizeof pairs);
      }
    }
  }

  int64_t SizeOf(const Piece& piece) const {
    return transposed_ ? plan_.taps * PackedSize<A>(Factors(plan_.group_filters), piece.width())
                       : PackedSize<A>(plan_.taps * Factors(piece.width()), plan_.group_filters);
  }

  // Calls step(piece, first tap, taps): all taps at once where the kernel's rows and the columns
  // follow one another from tap to tap.
  template <typename Step>
  void ForPieces(const Slice& slice, int64_t tap, int64_t taps, Step&& step) const {
    for (const Piece& piece : slice.pieces) {
      const bool joined = slice.width() == piece.width() && piece.width() == plan_.group_channels;
      const int64_t at_once = joined ? taps : 1;
      for (int64_t each = 0; each < taps; each += at_once) step(piece, tap + each, at_once);
    }
  }

  const Plan<T>& plan_;
  bool transposed_;
  int64_t size_ = 0;
};

}  // namespace
}  // namespace tf_deform

#endif  // TF_DEFORM_CUSTOM_OPS_CPU_CONV_PRODUCTS_H_
