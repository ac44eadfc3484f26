// The matrix products of a convolution, slice by slice, of a kernel that is packed once a call.
// For the convolution and its gradient.

#ifndef TF_DEFORM_CUSTOM_OPS_CPU_CONV_PRODUCTS_H_
#define TF_DEFORM_CUSTOM_OPS_CPU_CONV_PRODUCTS_H_

#include <cstdint>
#include <vector>

#include "custom_ops/cpu/product.h"
#include "custom_ops/cpu/slices.h"
#include "custom_ops/kernels.h"

namespace tf_deform {
namespace {

// The products of a dense or grouped convolution of numbers of type S. Columns are [count, taps,
// channels of the slice], of which rows are `stride` apart; the taps are those from `tap` on.
template <typename S, typename T = Wide<S>>
class Products {
 public:
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

  // Packs the kernel, or its transpose tap by tap.
  void PackKernel(const Pool& pool, const std::vector<Slice>& slices, const S* kernel,
                  T* packed) const {
    const int64_t filters = plan_.group_filters;
    const double cost = 2.0 * size_ / slices.size();
    ParallelFor(
        pool, slices.size() * plan_.taps, cost / plan_.taps + 1, [&](int64_t first, int64_t last) {
          for (int64_t each = first; each < last; ++each) {
            const int64_t tap = each % plan_.taps;
            for (const Piece& piece : slices[each / plan_.taps].pieces) {
              const S* from = kernel + plan_.Filters(tap, piece.begin);
              T* to = packed + piece.packed;
              if (transposed_) {
                Pack(from, 1, plan_.sizes.filters, filters, piece.width(), filters * kPanel<T>,
                     to + tap * PackedSize<T>(filters, piece.width()));
              } else {
                Pack(from, plan_.sizes.filters, 1, piece.width(), filters,
                     plan_.taps * piece.width() * kPanel<T>, to + tap * piece.width() * kPanel<T>);
              }
            }
          }
        });
  }

  // out [count, filters] (+)= columns * kernel.
  void Forward(const Slice& slice, int64_t tap, int64_t taps, const T* columns, int64_t stride,
               int64_t count, const T* packed, T* out) const {
    ForPieces(slice, tap, taps, [&](const Piece& piece, int64_t first, int64_t at_once) {
      const bool add = first > 0 || piece.begin % plan_.group_channels > 0;
      Multiply<false>(columns + (first - tap) * slice.width() + piece.begin - slice.begin, stride,
                      count, at_once * piece.width(),
                      packed + piece.packed + first * piece.width() * kPanel<T>,
                      plan_.taps * piece.width() * kPanel<T>, plan_.group_filters, add,
                      out + piece.group * plan_.group_filters, plan_.sizes.filters);
    });
  }

  // columns = gradient [count, filters] * transposed kernel.
  void ColumnsGradient(const Slice& slice, int64_t tap, int64_t taps, const T* packed,
                       const T* gradient, int64_t count, T* columns, int64_t stride) const {
    const int64_t filters = plan_.group_filters;
    for (const Piece& piece : slice.pieces) {
      for (int64_t each = 0; each < taps; ++each) {
        Multiply<false>(
            gradient + piece.group * filters, plan_.sizes.filters, count, filters,
            packed + piece.packed + (tap + each) * PackedSize<T>(filters, piece.width()),
            filters * kPanel<T>, piece.width(), false,
            columns + each * slice.width() + piece.begin - slice.begin, stride);
      }
    }
  }

  // Packs the gradient [count, filters] for AddKernelGradient.
  int64_t gradient_size() const {
    return plan_.sizes.groups * PackedSize<T>(kTile, plan_.group_filters);
  }
  void PackGradient(const Slice& slice, const T* gradient, int64_t count, T* packed) const {
    for (const Piece& piece : slice.pieces) {
      Pack(gradient + piece.group * plan_.group_filters, plan_.sizes.filters, 1, count,
           plan_.group_filters, count * kPanel<T>,
           packed + piece.group * PackedSize<T>(kTile, plan_.group_filters));
    }
  }

  // kernel_gradient += transposed columns * gradient.
  void AddKernelGradient(const Slice& slice, int64_t tap, int64_t taps, const T* columns,
                         int64_t stride, const T* packed_gradient, int64_t count,
                         T* kernel_gradient) const {
    ForPieces(slice, tap, taps, [&](const Piece& piece, int64_t first, int64_t at_once) {
      Multiply<true>(columns + (first - tap) * slice.width() + piece.begin - slice.begin, stride,
                     at_once * piece.width(), count,
                     packed_gradient + piece.group * PackedSize<T>(kTile, plan_.group_filters),
                     count * kPanel<T>, plan_.group_filters, true,
                     kernel_gradient + plan_.Filters(first, piece.begin), plan_.sizes.filters);
    });
  }

 private:
  int64_t SizeOf(const Piece& piece) const {
    return transposed_ ? plan_.taps * PackedSize<T>(plan_.group_filters, piece.width())
                       : PackedSize<T>(plan_.taps * piece.width(), plan_.group_filters);
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
