// The deformable convolution on the CPU, fused: the samples of a tile of output pixels are written
// to a buffer and multiplied at once, so that the columns are never stored whole. The backward pass
// samples again. Tiles, slices and blocks depend on sizes alone, never on the number of threads, and
// every sum has one owner: results are the same bits for any number of threads.

#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

#include "cells.h"
#include "kernels.h"
#include "product.h"
#include "rows.h"
#include "sampling.h"

namespace tf_deform {
namespace {

constexpr int64_t kTile = 144;          // output pixels, whole blocks of any instruction set
constexpr int64_t kInnerBytes = 2048;   // of the samples of a pixel that are multiplied at once
constexpr int64_t kLine = 32;           // channels that an owner has at least
constexpr int64_t kWidest = 128;        // channels that an owner has at most
constexpr int64_t kOwners = 2;          // that a backward pass has, if it has the channels
constexpr int64_t kMostBlocks = 16;     // of images
constexpr int64_t kPartialBytes = int64_t{1} << 20;  // of point gradients, each block
constexpr int64_t kBlocksBytes = int64_t{4} << 20;   // of kernel gradients, all blocks

// Memory without values, aligned to cache lines.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)))) {}
  ~Buffer() { ::operator delete(data_, std::align_val_t(64)); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() const { return data_; }

 private:
  T* data_;
};

// A product over integers, of rank factors.
int64_t Product(const int64_t* sizes, int rank) {
  int64_t product = 1;
  for (int axis = 0; axis < rank; ++axis) product *= sizes[axis];
  return product;
}

int64_t CeilOfRatio(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Channels [begin, end) of one group, all in one slice.
struct Piece {
  int64_t group, begin, end;
  int64_t packed;  // where its part of the packed kernel begins
  int64_t width() const { return end - begin; }
};

// Channels [begin, end) that are sampled at once.
struct Slice {
  int64_t begin, end;
  std::vector<Piece> pieces;
  int64_t width() const { return end - begin; }
};

// The sizes of a convolution, and how its channels and taps are cut, whatever its rank.
template <typename T>
struct Plan {
  explicit Plan(const ConvSizes& sizes)
      : sizes(sizes),
        pixels(Product(sizes.output, sizes.rank)),
        taps(Product(sizes.kernel, sizes.rank)),
        group_channels(sizes.channels / sizes.groups),
        group_filters(sizes.filters / sizes.groups),
        moved_channels(sizes.channels / sizes.deformable_groups) {}

  bool depthwise() const { return group_channels == 1 && group_filters == 1; }

  // Where in the kernel, or its gradient, the filters of a tap's channel begin.
  int64_t Filters(int64_t tap, int64_t channel) const {
    return (tap * group_channels + channel % group_channels) * sizes.filters +
           channel / group_channels * group_filters;
  }

  // How many taps of so many channels are multiplied at once.
  int64_t TapsAtOnce(int64_t width) const {
    constexpr int64_t kMost = kInnerBytes / sizeof(T);
    const int64_t most = std::clamp<int64_t>(kMost / width, 1, Cells<T, 1>::kSize);
    return CeilOfRatio(taps, CeilOfRatio(taps, most));
  }

  // From one pixel's samples to the next one's: an odd number of cache lines, so that a column of
  // them does not fall into the same few sets of the cache.
  static int64_t Stride(int64_t inner) {
    constexpr int64_t kLineSize = 64 / sizeof(T);
    return (CeilOfRatio(inner, kLineSize) | 1) * kLineSize;
  }

  Slice SliceOf(int64_t begin, int64_t end) const {
    Slice slice{begin, end, {}};
    for (int64_t channel = begin; channel < end;) {
      const int64_t group = channel / group_channels;
      const int64_t last = std::min(end, (group + 1) * group_channels);
      slice.pieces.push_back({group, channel, last, 0});
      channel = last;
    }
    return slice;
  }

  const ConvSizes& sizes;
  int64_t pixels, taps;  // of the output of one image; of the kernel
  int64_t group_channels, group_filters, moved_channels;
};

// Cuts [begin, end) into slices of whole lines, nearly as wide as each other and not wider than
// wanted, nor than kInnerBytes.
template <typename T>
void AddSlices(const Plan<T>& plan, int64_t begin, int64_t end, int64_t wanted,
               std::vector<Slice>* slices) {
  const int64_t most = std::min<int64_t>(wanted, kInnerBytes / sizeof(T)) / kLine;
  const int64_t lines = CeilOfRatio(end - begin, kLine);
  const int64_t width = kLine * CeilOfRatio(lines, CeilOfRatio(lines, std::max<int64_t>(1, most)));
  for (; begin < end; begin += width) {
    slices->push_back(plan.SliceOf(begin, std::min(begin + width, end)));
  }
}

// The products of a dense or grouped convolution. Columns are [count, taps, channels of the slice],
// of which rows are `stride` apart; the taps are those from `tap` on.
template <typename T>
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
  void PackKernel(const Pool& pool, const std::vector<Slice>& slices, const T* kernel,
                  T* packed) const {
    const int64_t filters = plan_.group_filters;
    const int64_t cost = size_ / slices.size() * 2;
    ParallelFor(pool, slices.size() * plan_.taps, cost / plan_.taps + 1,
                [&](int64_t first, int64_t last) {
      for (int64_t each = first; each < last; ++each) {
        const int64_t tap = each % plan_.taps;
        for (const Piece& piece : slices[each / plan_.taps].pieces) {
          const T* from = kernel + plan_.Filters(tap, piece.begin);
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

// What a tap needs of its channels, in one pass over them: its sample into columns, the dot products
// of its corners with the gradient, and the gradient added to the corners. kCount corners.
template <int kCount, typename T>
inline void BackwardRows(const T* __restrict__ values, const int64_t* offset, const T* weight,
                         const T* __restrict__ gradient, int64_t channels, T* __restrict__ columns,
                         T* __restrict__ values_gradient, T* dot) {
  typename Vector<T>::Type dots[kCount] = {};
  ForChannels<T>(channels, [&](auto load, auto store, int64_t c) {
    const auto part = load(gradient + c);
    typename Vector<T>::Type sum = {};
    ForRows<kCount>(0, [&](int64_t i) {
      const auto value = load(values + offset[i] + c);
      const auto w = Broadcast(weight[i]);
      sum = MulAdd(value, w, sum);
      dots[i] = MulAdd(value, part, dots[i]);
      T* to = values_gradient + offset[i] + c;
      store(to, MulAdd(part, w, load(to)));
    });
    store(columns + c, sum);
  });
  Totals<kCount>(dots, dot);
}

// The same of a depthwise convolution, whose gradient is what is upstream times the tap's kernel.
template <int kCount, typename T>
inline void DepthwiseBackwardRows(const T* __restrict__ values, const int64_t* offset,
                                  const T* weight, const T* __restrict__ upstream,
                                  const T* __restrict__ kernel, int64_t channels,
                                  T* __restrict__ values_gradient, T* __restrict__ kernel_gradient,
                                  T* dot) {
  typename Vector<T>::Type dots[kCount] = {};
  ForChannels<T>(channels, [&](auto load, auto store, int64_t c) {
    const auto above = load(upstream + c);
    const auto part = above * load(kernel + c);
    typename Vector<T>::Type sum = {};
    ForRows<kCount>(0, [&](int64_t i) {
      const auto value = load(values + offset[i] + c);
      const auto w = Broadcast(weight[i]);
      sum = MulAdd(value, w, sum);
      dots[i] = MulAdd(value, part, dots[i]);
      T* to = values_gradient + offset[i] + c;
      store(to, MulAdd(part, w, load(to)));
    });
    store(kernel_gradient + c, MulAdd(sum, above, load(kernel_gradient + c)));
  });
  Totals<kCount>(dots, dot);
}

// out[c] = sum over the taps of kernel[tap, c] * sample of tap[c]; with `add`, added to out. A tap's
// sample is that of kCount rows; weight: [taps, kCount], row: [taps, kCount].
template <int kCount, typename T>
inline void DepthwiseRows(const T* const* row, const T* weight, int64_t taps,
                          const T* __restrict__ kernel, int64_t kernel_stride, int64_t channels,
                          bool add, T* __restrict__ out) {
  constexpr int64_t kLanes = Vector<T>::kLanes;
  constexpr int kWide = 4;
  int64_t begin = 0;
  for (; begin + kWide * kLanes <= channels; begin += kWide * kLanes) {
    typename Vector<T>::Type total[kWide] = {};
    if (add) {
      for (int j = 0; j < kWide; ++j) total[j] = Load(out + begin + j * kLanes);
    }
    for (int64_t tap = 0; tap < taps; ++tap) {
      typename Vector<T>::Type sum[kWide] = {};
      ForRows<kCount>(0, [&](int64_t i) {
        const T* from = row[tap * kCount + i] + begin;
        const auto w = Broadcast(weight[tap * kCount + i]);
        for (int j = 0; j < kWide; ++j) sum[j] = MulAdd(Load(from + j * kLanes), w, sum[j]);
      });
      const T* factor = kernel + tap * kernel_stride + begin;
      for (int j = 0; j < kWide; ++j) total[j] = MulAdd(Load(factor + j * kLanes), sum[j], total[j]);
    }
    for (int j = 0; j < kWide; ++j) Store(out + begin + j * kLanes, total[j]);
  }
  ForChannels<T>(channels - begin, [&](auto load, auto store, int64_t c) {
    c += begin;
    typename Vector<T>::Type total = {};
    if (add) total = load(out + c);
    for (int64_t tap = 0; tap < taps; ++tap) {
      typename Vector<T>::Type sum = {};
      ForRows<kCount>(0, [&](int64_t i) {
        sum = MulAdd(load(row[tap * kCount + i] + c), Broadcast(weight[tap * kCount + i]), sum);
      });
      total = MulAdd(load(kernel + tap * kernel_stride + c), sum, total);
    }
    store(out + c, total);
  });
}

template <typename T, int kRank>
class Convolution {
 public:
  Convolution(const ConvSizes& sizes, const T* inputs, const T* kernel, const T* offset,
              const T* mask)
      : plan_(sizes),
        sizes_(sizes),
        inputs_(inputs),
        kernel_(kernel),
        offset_(offset),
        mask_(mask),
        space_(sizes.space, sizes.channels),
        tap_(plan_.taps * kRank) {
    for (int64_t tap = 0; tap < plan_.taps; ++tap) {
      int64_t rest = tap;
      for (int axis = kRank - 1; axis >= 0; --axis) {
        tap_[tap * kRank + axis] =
            rest % sizes.kernel[axis] * sizes.dilations[axis] - sizes.before[axis];
        rest /= sizes.kernel[axis];
      }
    }
  }

  void Forward(const Pool& pool, T* out) const {
    const int64_t points = sizes_.batch * plan_.pixels;
    std::vector<Slice> slices;
    if (!plan_.depthwise()) AddSlices(plan_, 0, sizes_.channels, sizes_.channels, &slices);
    Products<T> products(plan_, &slices, false);
    const Buffer<T> packed(products.packed_size());
    if (!plan_.depthwise()) products.PackKernel(pool, slices, kernel_, packed.get());
    const std::vector<T> zeros(plan_.depthwise() ? plan_.moved_channels : 0);
    const int64_t cost = kTile * plan_.taps * sizes_.channels * (plan_.group_filters / 16 + 1);
    ParallelFor(pool, CeilOfRatio(points, kTile), cost, [&](int64_t begin, int64_t end) {
      const int64_t width = slices.empty() ? 0 : slices[0].width();
      const int64_t stride = Plan<T>::Stride(width ? plan_.TapsAtOnce(width) * width : 0);
      const Buffer<T> columns(kTile * stride);
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTile;
        const int64_t count = std::min(kTile, points - first);
        T* to = out + first * sizes_.filters;
        if (plan_.depthwise()) DepthwiseTile(first, count, zeros.data(), to);
        for (const Slice& slice : slices) {
          const int64_t at_once = plan_.TapsAtOnce(slice.width());
          for (int64_t tap = 0; tap < plan_.taps; tap += at_once) {
            const int64_t taps = std::min(at_once, plan_.taps - tap);
            SampleTile(first, count, slice, tap, taps, columns.get(), stride);
            products.Forward(slice, tap, taps, columns.get(), stride, count, packed.get(), to);
          }
        }
      }
    });
  }

  void Backward(const Pool& pool, const T* gradient, T* inputs_gradient, T* kernel_gradient,
                T* offset_gradient, T* mask_gradient) const;

 private:
  using Found = Cells<T, kRank>;
  static constexpr int kMost = Found::kMost;

  // Some points' taps as cells: point by point, tap by tap.
  struct Chunk {
    Found cells;
    int64_t first, points;
    int64_t image[Found::kSize];  // of each point
  };

  // Calls visit(chunk) for the taps [tap, tap + taps) of `count` output pixels of the batch. A
  // position is made in integers; adding the offset is the only rounding.
  template <typename Visit>
  void ForChunks(int64_t first, int64_t count, int64_t moved, int64_t tap, int64_t taps,
                 Visit&& visit) const {
    Chunk chunk;
    const int64_t most = Found::kSize / taps;
    int64_t at[kRank];
    int64_t image = first / plan_.pixels;
    int64_t rest = first % plan_.pixels;
    for (int axis = kRank - 1; axis >= 0; --axis) {
      at[axis] = rest % sizes_.output[axis];
      rest /= sizes_.output[axis];
    }
    for (int64_t start = first; start < first + count; start += most) {
      chunk.first = start;
      chunk.points = std::min(most, first + count - start);
      int64_t cell = 0;
      for (int64_t point = start; point < start + chunk.points; ++point) {
        const int64_t from = (point * sizes_.deformable_groups + moved) * plan_.taps + tap;
        const T* shift = offset_ + from * kRank;
        chunk.image[point - start] = image;
        for (int64_t each = 0; each < taps; ++each, ++cell) {
          const int64_t* place = tap_.data() + (tap + each) * kRank;
          for (int axis = 0; axis < kRank; ++axis) {
            chunk.cells.position[axis][cell] =
                static_cast<T>(at[axis] * sizes_.strides[axis] + place[axis]) +
                shift[each * kRank + axis];
          }
          chunk.cells.factor[cell] = mask_ ? mask_[from + each] : T(1);
        }
        int axis = kRank - 1;
        while (axis >= 0 && ++at[axis] == sizes_.output[axis]) at[axis--] = 0;
        image += axis < 0;
      }
      chunk.cells.Find(space_, cell);
      visit(chunk);
    }
  }

  // columns: [count, taps, channels of the slice], of which rows are `stride` apart.
  void SampleTile(int64_t first, int64_t count, const Slice& slice, int64_t tap, int64_t taps,
                  T* columns, int64_t stride) const {
    for (int64_t moved = slice.begin / plan_.moved_channels;
         moved * plan_.moved_channels < slice.end; ++moved) {
      const int64_t begin = std::max(slice.begin, moved * plan_.moved_channels);
      const int64_t width = std::min(slice.end, (moved + 1) * plan_.moved_channels) - begin;
      ForChunks(first, count, moved, tap, taps, [&](const Chunk& chunk) {
        for (int64_t point = 0; point < chunk.points; ++point) {
          const T* image = inputs_ + chunk.image[point] * space_.elements + begin;
          T* to = columns + (chunk.first - first + point) * stride + begin - slice.begin;
          for (int64_t each = 0; each < taps; ++each, to += slice.width()) {
            Sample(chunk.cells, space_, point * taps + each, image, width, to);
          }
        }
      });
    }
  }

  // Where the rows of a cell's corners begin, and their weights, for all kMost: corners that are not
  // there read zeros.
  void RowsOf(const Found& cells, int64_t cell, const T* image, const T* zeros, const T** row,
              T* weight) const {
    if (cells.interior[cell]) {
      const T* lower = image + cells.Lower(space_, cell);
      for (int i = 0; i < kMost; ++i) {
        row[i] = lower + space_.corner[i];
        weight[i] = cells.weight[i][cell];
      }
      return;
    }
    Corners<T, kRank, false> corners;
    cells.Corner(space_, cell, &corners);
    const int count = corners.reads ? corners.count : 0;
    for (int i = 0; i < kMost; ++i) {
      row[i] = i < count ? image + corners.offset[i] : zeros;
      weight[i] = i < count ? corners.weight[i] * cells.factor[cell] : T(0);
    }
  }

  // out: [count, filters]. zeros: the channels of a deformable group.
  void DepthwiseTile(int64_t first, int64_t count, const T* zeros, T* out) const {
    const int64_t width = plan_.moved_channels;
    const T* row[Found::kSize * kMost];
    T weight[Found::kSize * kMost];
    for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
      const int64_t begin = moved * width;
      for (int64_t tap = 0; tap < plan_.taps; tap += Found::kSize) {
        const int64_t taps = std::min(Found::kSize, plan_.taps - tap);
        ForChunks(first, count, moved, tap, taps, [&](const Chunk& chunk) {
          for (int64_t point = 0; point < chunk.points; ++point) {
            const T* image = inputs_ + chunk.image[point] * space_.elements + begin;
            for (int64_t each = 0; each < taps; ++each) {
              RowsOf(chunk.cells, point * taps + each, image, zeros, row + each * kMost,
                     weight + each * kMost);
            }
            T* to = out + (chunk.first - first + point) * sizes_.filters + begin;
            DepthwiseRows<kMost>(row, weight, taps, kernel_ + tap * sizes_.filters + begin,
                                 sizes_.filters, width, tap > 0, to);
          }
        });
      }
    }
  }

  // What an owner works with in the backward pass: its slice of channels, and the buffers.
  struct Owner {
    const Slice& slice;
    int64_t moved;
    const T* packed;                   // the kernel, transposed
    T *columns, *columns_gradient, *packed_gradient;
    int64_t stride;                    // of both columns
    T *inputs_gradient, *kernel_gradient;
  };

  void BackwardTile(const Owner& owner, const Products<T>& products, int64_t first, int64_t count,
                    const T* gradient, T* share) const;
  void DepthwiseBackwardTile(const Owner& owner, int64_t first, int64_t count, const T* gradient,
                             T* share) const;
  template <typename Visit, typename Nothing>
  void BackwardChunk(const Chunk& chunk, int64_t taps, T* share, Visit&& visit,
                     Nothing&& nothing) const;
  void SumPoints(int64_t per_moved, int64_t point, const T* partial, int64_t slice_stride,
                 T* offset_gradient, T* mask_gradient) const;

  const Plan<T> plan_;
  const ConvSizes& sizes_;
  const T *inputs_, *kernel_, *offset_, *mask_;
  Space<T, kRank> space_;
  std::vector<int64_t> tap_;  // [taps, rank]: positions relative to the output pixel's
};

// Calls visit(constant, point, tap, from, offset, weight, reads, dot) for every cell with corners:
// it adds to what it owns, for as many corners as the constant says, at from + offset[i], and sets
// dot[i]; where it does not read, it only does the latter. nothing(point, tap) is called for a cell
// without corners. The gradients of the points are written to share, [points, all taps, rank + 1].
template <typename T, int kRank>
template <typename Visit, typename Nothing>
void Convolution<T, kRank>::BackwardChunk(const Chunk& chunk, int64_t taps, T* share, Visit&& visit,
                                          Nothing&& nothing) const {
  const Found& cells = chunk.cells;
  const int64_t stride = plan_.taps * (kRank + 1);  // of share, from point to point
  alignas(64) T dots[kMost][Found::kSize];
  alignas(64) T gradients[kRank + 1][Found::kSize];
  T weight[kMost], dot[kMost];
  int64_t cell = 0;
  for (int64_t point = 0; point < chunk.points; ++point) {
    const int64_t image = chunk.image[point] * space_.elements;
    for (int64_t tap = 0; tap < taps; ++tap, ++cell) {
      if (cells.interior[cell]) {
        for (int i = 0; i < kMost; ++i) weight[i] = cells.weight[i][cell];
        visit(std::integral_constant<int, kMost>(), point, tap, image + cells.Lower(space_, cell),
              space_.corner, weight, true, dot);
        for (int i = 0; i < kMost; ++i) dots[i][cell] = dot[i];
        continue;
      }
      Corners<T, kRank> corners;
      cells.Corner(space_, cell, &corners);
      for (int i = 0; i < corners.count; ++i) weight[i] = corners.weight[i] * cells.factor[cell];
      if (corners.count == 0) nothing(point, tap);
      WithConstant<kMost>(corners.count, [&](auto count) {
        visit(count, point, tap, image, corners.offset, weight, corners.reads, dot);
      });
      PointGradient(corners, cells.factor[cell], dot, share + point * stride + tap * (kRank + 1));
    }
  }
  PointGradients(cells, cell, dots, gradients);
  cell = 0;
  for (int64_t point = 0; point < chunk.points; ++point) {
    T* to = share + point * stride;
    for (int64_t tap = 0; tap < taps; ++tap, ++cell, to += kRank + 1) {
      if (!cells.interior[cell]) continue;
      for (int axis = 0; axis <= kRank; ++axis) to[axis] = gradients[axis][cell];
    }
  }
}

// share: [count, taps, rank + 1].
template <typename T, int kRank>
void Convolution<T, kRank>::BackwardTile(const Owner& owner, const Products<T>& products,
                                         int64_t first, int64_t count, const T* gradient,
                                         T* share) const {
  const Slice& slice = owner.slice;
  const int64_t width = slice.width();
  const int64_t stride = owner.stride;
  const int64_t at_once = plan_.TapsAtOnce(width);
  products.PackGradient(slice, gradient, count, owner.packed_gradient);
  for (int64_t tap = 0; tap < plan_.taps; tap += at_once) {
    const int64_t taps = std::min(at_once, plan_.taps - tap);
    products.ColumnsGradient(slice, tap, taps, owner.packed, gradient, count,
                             owner.columns_gradient, stride);
    ForChunks(first, count, owner.moved, tap, taps, [&](const Chunk& chunk) {
      const int64_t start = chunk.first - first;
      const auto column_of = [&](int64_t point, int64_t each) {
        return (start + point) * stride + each * width;
      };
      BackwardChunk(
          chunk, taps, share + (start * plan_.taps + tap) * (kRank + 1),
          [&](auto corners, int64_t point, int64_t each, int64_t from, const int64_t* offset,
              const T* weight, bool reads, T* dot) {
            const int64_t column = column_of(point, each);
            const T* part = owner.columns_gradient + column;
            const T* values = inputs_ + from + slice.begin;
            if (reads) {
              BackwardRows<corners>(values, offset, weight, part, width, owner.columns + column,
                                    owner.inputs_gradient + from + slice.begin, dot);
            } else {
              std::fill_n(owner.columns + column, width, T(0));
              DotRows<corners>(values, offset, part, width, dot);
            }
          },
          [&](int64_t point, int64_t each) {
            std::fill_n(owner.columns + column_of(point, each), width, T(0));
          });
    });
    products.AddKernelGradient(slice, tap, taps, owner.columns, stride, owner.packed_gradient,
                               count, owner.kernel_gradient);
  }
}

template <typename T, int kRank>
void Convolution<T, kRank>::DepthwiseBackwardTile(const Owner& owner, int64_t first, int64_t count,
                                                  const T* gradient, T* share) const {
  const int64_t channel = owner.slice.begin;
  const int64_t width = owner.slice.width();
  for (int64_t tap = 0; tap < plan_.taps; tap += Found::kSize) {
    const int64_t taps = std::min(Found::kSize, plan_.taps - tap);
    ForChunks(first, count, owner.moved, tap, taps, [&](const Chunk& chunk) {
      const int64_t start = chunk.first - first;
      BackwardChunk(
          chunk, taps, share + (start * plan_.taps + tap) * (kRank + 1),
          [&](auto corners, int64_t point, int64_t each, int64_t from, const int64_t* offset,
              const T* weight, bool reads, T* dot) {
            const T* upstream = gradient + (start + point) * sizes_.filters + channel;
            const int64_t filter = (tap + each) * sizes_.filters + channel;
            const T* values = inputs_ + from + channel;
            if (reads) {
              DepthwiseBackwardRows<corners>(values, offset, weight, upstream, kernel_ + filter,
                                             width, owner.inputs_gradient + from + channel,
                                             owner.kernel_gradient + filter, dot);
            } else {
              std::fill_n(owner.columns, width, T(0));
              AddProduct(upstream, kernel_ + filter, width, owner.columns);
              DotRows<corners>(values, offset, owner.columns, width, dot);
            }
          },
          [](int64_t, int64_t) {});
    });
  }
}

// Sums the slices' shares of one output pixel's gradients, in their order; each deformable group
// has per_moved. partial: of the first slice, [taps, rank + 1]; the next slice's is at slice_stride.
template <typename T, int kRank>
void Convolution<T, kRank>::SumPoints(int64_t per_moved, int64_t point, const T* partial,
                                      int64_t slice_stride, T* offset_gradient,
                                      T* mask_gradient) const {
  for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
    const T* share = partial + moved * per_moved * slice_stride;
    const int64_t at = (point * sizes_.deformable_groups + moved) * plan_.taps;
    for (int64_t tap = 0; tap < plan_.taps; ++tap, share += kRank + 1) {
      for (int axis = 0; axis <= kRank; ++axis) {
        T sum = share[axis];
        for (int64_t nth = 1; nth < per_moved; ++nth) sum += share[nth * slice_stride + axis];
        if (axis < kRank) {
          offset_gradient[(at + tap) * kRank + axis] = sum;
        } else if (mask_gradient) {
          mask_gradient[at + tap] = sum;
        }
      }
    }
  }
}

// An owner has the images of a block and a slice of channels; all it adds to is its own, but for
// the gradients of the points, of which it leaves its share for a band of points at a time.
template <typename T, int kRank>
void Convolution<T, kRank>::Backward(const Pool& pool, const T* gradient, T* inputs_gradient,
                                     T* kernel_gradient, T* offset_gradient,
                                     T* mask_gradient) const {
  const int64_t kernel_size = plan_.taps * plan_.group_channels * sizes_.filters;
  const int64_t most = std::clamp<int64_t>(kBlocksBytes / (kernel_size * sizeof(T)), 1, kMostBlocks);
  const int64_t images = std::max<int64_t>(1, CeilOfRatio(sizes_.batch, most));  // a block has
  const int64_t blocks = std::max<int64_t>(1, CeilOfRatio(sizes_.batch, images));
  const int64_t block_points = images * plan_.pixels;
  const int64_t others = blocks * sizes_.deformable_groups;
  const int64_t wanted = std::min(kWidest, CeilOfRatio(plan_.moved_channels * others, kOwners));
  std::vector<Slice> slices;
  for (int64_t moved = 0; moved < sizes_.deformable_groups; ++moved) {
    AddSlices(plan_, moved * plan_.moved_channels, (moved + 1) * plan_.moved_channels,
              wanted, &slices);
  }
  const int64_t per_moved = slices.size() / sizes_.deformable_groups;
  const int64_t owners = blocks * slices.size();
  const int64_t width = slices[0].width();  // the widest
  const int64_t per_point = plan_.taps * (kRank + 1);
  const int64_t band_limit = kPartialBytes / (slices.size() * per_point * sizeof(T));
  const int64_t band = kTile * std::min(std::max<int64_t>(1, band_limit / kTile),
                                        CeilOfRatio(block_points, kTile));

  const Products<T> products(plan_, &slices, true);
  const Buffer<T> packed(plan_.depthwise() ? 0 : products.packed_size());
  const Buffer<T> kernel_partial((blocks - 1) * kernel_size);  // of all blocks but the first
  const Buffer<T> partial(owners * band * per_point);
  if (!plan_.depthwise()) products.PackKernel(pool, slices, kernel_, packed.get());
  std::fill(kernel_gradient, kernel_gradient + kernel_size, T(0));
  std::fill(kernel_partial.get(), kernel_partial.get() + (blocks - 1) * kernel_size, T(0));
  ParallelFor(pool, sizes_.batch, space_.elements / 4, [&](int64_t begin, int64_t end) {
    std::fill(inputs_gradient + begin * space_.elements, inputs_gradient + end * space_.elements,
              T(0));
  });
  const auto end_of = [&](int64_t block, int64_t first) {
    return std::min({first + band, (block + 1) * block_points, sizes_.batch * plan_.pixels});
  };

  for (int64_t start = 0; start < block_points; start += band) {
    const int64_t cost = band * plan_.taps * width * (plan_.group_filters / 8 + 4);
    ParallelFor(pool, owners, cost, [&](int64_t begin, int64_t end) {
      const int64_t stride = Plan<T>::Stride(plan_.TapsAtOnce(width) * width);
      const Buffer<T> columns(kTile * stride);
      const Buffer<T> columns_gradient(kTile * stride);
      const Buffer<T> packed_gradient(products.gradient_size());
      for (int64_t each = begin; each < end; ++each) {
        const int64_t block = each / slices.size();
        const int64_t nth = each % slices.size();
        const Owner owner{slices[nth], nth / per_moved, packed.get(), columns.get(),
                          columns_gradient.get(), packed_gradient.get(), stride, inputs_gradient,
                          block ? kernel_partial.get() + (block - 1) * kernel_size
                                : kernel_gradient};
        const int64_t first = block * block_points + start;
        T* share = partial.get() + each * band * per_point;
        for (int64_t tile = first; tile < end_of(block, first); tile += kTile) {
          const int64_t count = std::min(kTile, end_of(block, first) - tile);
          const T* upstream = gradient + tile * sizes_.filters;
          if (plan_.depthwise()) {
            DepthwiseBackwardTile(owner, tile, count, upstream, share);
          } else {
            BackwardTile(owner, products, tile, count, upstream, share);
          }
          share += count * per_point;
        }
      }
    });
    ParallelFor(pool, blocks * band, 2 * slices.size() * per_point, [&](int64_t begin, int64_t end) {
      for (int64_t each = begin; each < end; ++each) {
        const int64_t block = each / band;
        const int64_t first = block * block_points + start;
        if (first + each % band >= end_of(block, first)) continue;
        SumPoints(per_moved, first + each % band,
                  partial.get() + (block * slices.size() * band + each % band) * per_point,
                  band * per_point, offset_gradient, mask_gradient);
      }
    });
  }
  ParallelFor(pool, kernel_size, blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = 1; block < blocks; ++block) {
      const T* from = kernel_partial.get() + (block - 1) * kernel_size;
      for (int64_t at = begin; at < end; ++at) kernel_gradient[at] += from[at];
    }
  });
}

template <typename T, int kRank>
void Forward(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
             const T* offset, const T* mask, T* out) {
  Convolution<T, kRank>(sizes, inputs, kernel, offset, mask).Forward(pool, out);
}

template <typename T, int kRank>
void Backward(const Pool& pool, const ConvSizes& sizes, const T* inputs, const T* kernel,
              const T* offset, const T* mask, const T* gradient, T* inputs_gradient,
              T* kernel_gradient, T* offset_gradient, T* mask_gradient) {
  Convolution<T, kRank>(sizes, inputs, kernel, offset, mask)
      .Backward(pool, gradient, inputs_gradient, kernel_gradient, offset_gradient, mask_gradient);
}

}  // namespace

template <typename T>
void SetConvKernels(TypedKernels<T>* kernels) {
  kernels->conv = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    constexpr decltype(kernels->conv) kOfRank[] = {Forward<T, 1>, Forward<T, 2>, Forward<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
  kernels->conv_grad = [](const Pool& pool, const ConvSizes& sizes, auto... rest) {
    constexpr decltype(kernels->conv_grad) kOfRank[] = {Backward<T, 1>, Backward<T, 2>,
                                                        Backward<T, 3>};
    kOfRank[sizes.rank - 1](pool, sizes, rest...);
  };
}

template void SetConvKernels<float>(TypedKernels<float>*);
template void SetConvKernels<double>(TypedKernels<double>*);

}  // namespace tf_deform
